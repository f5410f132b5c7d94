"""The evaluate stage: every student, package and the teacher, one after another. One process works."""

from collections.abc import Iterator
from dataclasses import replace

from distill.planning import rates
from distill.planning.changes import Change, for_teaching, shorter
from distill.planning.evaluating import (
    BATCH,
    asked_prompts,
    evaluating_need,
    longest_asked,
    scored,
    teaching_beside,
)
from distill.planning.model import Model
from distill.planning.placement import DISK_RATE
from distill.planning.result import Stage
from distill.planning.site import Site, fits, size_of

FEWER_ROWS, FEWEST_POSITIONS = (64, 32), 250
"""Of an evaluation that does not fit; with fewer it says little."""


def evaluate(site: Site) -> list[Stage]:
    recipe, student = site.recipe, site.facts.student
    students = 1 + len(recipe.baselines) + sum(c.runtime == "transformers" for c in recipe.compression.values())
    _, *teachers = scored(site)
    with_teacher = [of for of, *_ in teachers]
    layout = "".join(f"; teacher: {where}" for _, where, _ in teachers)
    asked, prompt = asked_prompts(site), min(site.volume.prompt, longest_asked(site))
    tokens = asked * (prompt + recipe.evaluation.max_new_tokens) + recipe.evaluation.positions
    return [
        site.finished(
            "evaluate",
            f"{students} of {size_of(student)}" + "".join(f", the teacher of {size_of(of)}" for of in with_teacher),
            f"one process{layout}",
            lambda recipe, hardware: evaluating_need(replace(site, recipe=recipe, hardware=hardware)),
            _changes(site, with_teacher[0] if with_teacher else None),
            lambda recipe, hardware: _work(replace(site, recipe=recipe, hardware=hardware), students),
            beside=teaching_beside(site),
            tokens=(students + len(with_teacher)) * tokens,
        )
    ]


def _changes(site: Site, teacher: Model | None) -> Iterator[Change]:
    """What alters the teacher, then fewer rows at once, which are fewer in all, fewer scored tokens and shorter rows;
    what has to be bought comes last."""
    altered = list(_teachers_changes(site, teacher)) if teacher else []
    yield from (change for change in altered if change.hardware == site.hardware)
    start = Change((), site.recipe, site.hardware)
    quantised = [change for change in altered if change.words == ("teacher.quantization=nf4",)]
    for change in (start, *quantised):
        fewer = [_fewer_rows(change, rows) for rows in FEWER_ROWS if rows < min(BATCH, asked_prompts(site))]
        yield from fewer
        least = change
        for one in (change, *fewer[-1:]):
            for least in _fewer_positions(one):
                yield least
        yield from shorter(least)
    yield from (change for change in altered if change.hardware != site.hardware)


def _teachers_changes(site: Site, teacher: Model) -> Iterator[Change]:
    """As for teaching. The rows that it is asked at once alter nothing here, but may have to be fewer there."""
    beside = teaching_beside(site)
    alone = beside is None or fits(beside(site.recipe, site.hardware), site.hardware)
    for change in for_teaching(site.recipe, site.hardware, teacher):
        if not alone or not any(word.startswith("teacher.batch_size=") for word in change.words):
            yield change


def _fewer_rows(start: Change, rows: int) -> Change:
    evaluation = replace(start.recipe.evaluation, rows=rows)
    return start.and_then(f"evaluation.rows={rows}", replace(start.recipe, evaluation=evaluation))


def _fewer_positions(start: Change) -> Iterator[Change]:
    positions = start.recipe.evaluation.positions
    while positions > FEWEST_POSITIONS:
        positions = max(FEWEST_POSITIONS, positions // 2)
        evaluation = replace(start.recipe.evaluation, positions=positions)
        yield start.and_then(f"evaluation.positions={positions}", replace(start.recipe, evaluation=evaluation))


def _work(site: Site, students: int) -> rates.Work:
    evaluation, one, work = site.recipe.evaluation, replace(site.hardware, count=1), rates.NOTHING
    length = min(site.volume.longest(site.recipe.training.max_length), site.facts.student.positions or 1 << 30)
    for model, where, dtype in scored(site):
        weights = where.on_device * where.devices + where.on_host
        wrote = rates.writing(
            model,
            asked_prompts(site),
            min(site.volume.prompt, longest_asked(site)),
            evaluation.max_new_tokens,
            one,
            at_once=BATCH,
            devices=1,
            weight_bytes=weights,
            engine="transformers",
            dtype=dtype,
            fetching=where.seconds_per_pass,
        )
        read = rates.reading(model, 2 * evaluation.positions, length, one, 1, dtype=dtype)
        times = students if model is site.facts.student else 1
        work = rates.Work(
            work.flops + times * (wrote.flops + read.flops),
            work.seconds + times * (wrote.seconds + read.seconds + weights / DISK_RATE),
            wrote.bound,
        )
    return work
