"""The evaluate stage: every student, package and the teacher, one after another. One process works."""

from collections.abc import Iterator
from dataclasses import replace

from distill.planning import rates
from distill.planning.changes import for_teaching
from distill.planning.memory import FLOAT32, Memory
from distill.planning.model import Model
from distill.planning.placement import DISK_RATE, Placement, placed
from distill.planning.result import Stage
from distill.planning.site import Site, size_of
from distill.planning.teaching import of_reader
from distill.planning.weights import dtype_of

BATCH = 128
Scored = tuple[Model, Placement, str]
"""A model, where its weights lie, their dtype."""


def evaluate(site: Site) -> list[Stage]:
    recipe, student = site.recipe, site.facts.student
    students = 1 + len(recipe.baselines) + sum(c.runtime == "transformers" for c in recipe.compression.values())
    _, *teachers = _scored(site)
    with_teacher = [of for of, *_ in teachers]
    layout = "".join(f"; teacher: {where}" for _, where, _ in teachers)
    asked, prompt = _asked(site), min(site.volume.prompt, _longest_prompt(site))
    tokens = asked * (prompt + recipe.evaluation.max_new_tokens) + recipe.evaluation.positions
    return [
        site.finished(
            "evaluate",
            f"{students} of {size_of(student)}" + "".join(f", the teacher of {size_of(of)}" for of in with_teacher),
            f"one process{layout}",
            lambda recipe, hardware: _need(replace(site, recipe=recipe, hardware=hardware)),
            for_teaching(recipe, site.hardware, with_teacher[0]) if with_teacher else iter(()),
            lambda recipe, hardware: _work(replace(site, recipe=recipe, hardware=hardware), students),
            tokens=(students + len(with_teacher)) * tokens,
        )
    ]


def _scored(site: Site) -> Iterator[Scored]:
    """The student, and a teacher whose weights are loaded here: a served one is not scored."""
    student, teacher = site.facts.student, site.recipe.teacher
    yield student, Placement(FLOAT32 * student.parameters, 0.0, 1), "float32"
    _, model = site.facts.teachers.get("teach", (None, None))
    if teacher.kind == "hf" and model is not None:
        yield model, placed(teacher, model, site.hardware), dtype_of(teacher, model)


def _need(site: Site) -> Memory:
    evaluation, memories = site.recipe.evaluation, []
    positions = site.facts.student.positions or 1 << 30
    for model, where, dtype in _scored(site):
        memory = of_reader(
            model,
            where,
            dtype,
            site.hardware,
            length=min(site.volume.longest(site.recipe.training.max_length), positions),
            positions=evaluation.positions,
            rows=min(BATCH, max(1, _asked(site))),
            new_tokens=evaluation.max_new_tokens,
            prompt=_longest_prompt(site),
        )
        memories.append(replace(memory, moment=f"{size_of(model)}: {memory.moment}"))
    return max(memories, key=lambda memory: memory.total)


def _work(site: Site, students: int) -> rates.Work:
    evaluation, one, work = site.recipe.evaluation, replace(site.hardware, count=1), rates.NOTHING
    length = min(site.volume.longest(site.recipe.training.max_length), site.facts.student.positions or 1 << 30)
    for model, where, _ in _scored(site):
        weights = where.on_device * where.devices + where.on_host
        wrote = rates.writing(
            model,
            _asked(site),
            min(site.volume.prompt, _longest_prompt(site)),
            evaluation.max_new_tokens,
            one,
            at_once=BATCH,
            devices=1,
            weight_bytes=weights,
            engine="transformers",
            fetching=where.seconds_per_pass,
        )
        read = rates.reading(model, 2 * evaluation.positions, length, one, 1)
        times = students if model is site.facts.student else 1
        work = rates.Work(
            work.flops + times * (wrote.flops + read.flops),
            work.seconds + times * (wrote.seconds + read.seconds + weights / DISK_RATE),
            wrote.bound,
        )
    return work


def _asked(site: Site) -> int:
    """Prompts that each model answers."""
    evaluation, there = site.recipe.evaluation, site.volume.evaluation_rows
    return min(evaluation.samples if evaluation.kind == "bits_per_byte" else evaluation.rows or there, there)


def _longest_prompt(site: Site) -> int:
    room = (site.facts.student.positions or 1 << 30) - site.recipe.evaluation.max_new_tokens
    return max(1, min(site.volume.longest_prompt, room))
