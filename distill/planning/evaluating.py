"""What scoring takes on a device: the student and its packages, and the teacher where its weights are loaded here."""

from collections.abc import Iterator
from dataclasses import replace

from distill.planning.memory import FLOAT32, Memory
from distill.planning.model import Model
from distill.planning.placement import Placement, placed
from distill.planning.site import Need, Site, size_of
from distill.planning.teaching import of_reader, teaching_need
from distill.planning.weights import dtype_of

BATCH = 128
Scored = tuple[Model, Placement, str]
"""A model, where its weights lie, their dtype."""


def scored(site: Site) -> Iterator[Scored]:
    """The student, and a teacher whose weights are loaded here: a served one is not scored."""
    student, teacher = site.facts.student, site.recipe.teacher
    yield student, Placement(FLOAT32 * student.parameters, 0.0, 1), "float32"
    _, model = site.facts.teachers.get("teach", (None, None))
    if teacher.kind == "hf" and model is not None:
        yield model, placed(teacher, model, site.hardware), dtype_of(teacher, model)


def evaluating_beside(site: Site) -> Need | None:
    """What the evaluation takes of the teacher that is asked before it; None where it is not scored."""
    if "evaluate" not in site.recipe.stages or len(list(scored(site))) == 1:
        return None
    return lambda recipe, hardware: evaluating_need(replace(site, recipe=recipe, hardware=hardware))


def teaching_beside(site: Site) -> Need | None:
    """What asking the teacher takes that is scored afterwards; None where it is not loaded here."""
    model = site.facts.teachers.get("teach", (None, None))[1]
    if model is None or site.recipe.live or len(list(scored(site))) == 1:
        return None
    return lambda recipe, hardware: teaching_need(recipe, hardware, model, site.volume)


def evaluating_need(site: Site) -> Memory:
    """Of the model that takes most."""
    evaluation, memories = site.recipe.evaluation, []
    positions = site.facts.student.positions or 1 << 30
    for model, where, dtype in scored(site):
        memory = of_reader(
            model,
            where,
            dtype,
            site.hardware,
            length=min(site.volume.longest(site.recipe.training.max_length), positions),
            positions=evaluation.positions,
            rows=min(BATCH, max(1, asked_prompts(site))),
            new_tokens=evaluation.max_new_tokens,
            prompt=longest_asked(site),
        )
        memories.append(replace(memory, moment=f"{size_of(model)}: {memory.moment}"))
    return max(memories, key=lambda memory: memory.total)


def asked_prompts(site: Site) -> int:
    """Prompts that each model answers."""
    evaluation, there = site.recipe.evaluation, site.volume.evaluation_rows
    return min(evaluation.samples if evaluation.kind == "bits_per_byte" else evaluation.rows or there, there)


def longest_asked(site: Site) -> int:
    room = (site.facts.student.positions or 1 << 30) - site.recipe.evaluation.max_new_tokens
    return max(1, min(site.volume.longest_prompt, room))
