"""On-policy training: the time in which the student writes its own answers, and the teacher scores them."""

from dataclasses import replace

from distill.planning import rates
from distill.planning.memory import FLOAT32
from distill.planning.model import Model
from distill.planning.site import Site
from distill.planning.teaching import devices_of, served_dtype
from distill.planning.weights import dtype_of

AT_ONCE = 128
"""Answers that one process writes beside each other, see `distill.stages._on_policy`."""


def own_answers_work(site: Site, teacher: Model | None, steps: float) -> rates.Work:
    """Of all rounds. The student's answers are taken to be as long as the teacher's.

    Args:
        teacher: what scores; None where that takes nothing of ours: it runs elsewhere, or stays beside the student and
            reads these answers with the training's other rows.
    """
    recipe, student, training, hardware = site.recipe, site.facts.student, site.recipe.training, site.hardware
    answer = min(site.volume.answer, training.on_policy_max_new_tokens)
    rows = steps * round(training.on_policy * training.batch_size)
    at_once = max(1.0, min(AT_ONCE, rows / training.on_policy_rounds / hardware.count))
    written = rates.writing(
        student,
        rows / hardware.count,
        site.volume.prompt,
        answer,
        hardware,
        at_once=at_once,
        devices=1,
        weight_bytes=FLOAT32 * student.parameters,
        engine="transformers",
        dtype="float32",
        longest=rates.longest_of(at_once, answer, training.on_policy_max_new_tokens),
    )
    work = replace(written, flops=written.flops * hardware.count)
    if teacher is None:
        return work
    option, length = recipe.teacher, site.volume.prompt + answer
    if option.kind == "vllm":
        devices = devices_of(option, hardware)
        passes, dtype = 0.0, served_dtype(option, teacher, hardware)
    else:
        assert option.kind == "hf"
        devices = hardware.count if recipe.each_scores else 1
        passes, dtype = rows / devices / at_once, dtype_of(option, teacher)
    read = rates.reading(teacher, rows * length, length, hardware, devices, dtype=dtype, passes=passes)
    return rates.Work(work.flops + read.flops, work.seconds + read.seconds, work.bound)
