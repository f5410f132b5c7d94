"""rehearsal.md: what a rehearsal proved, what it could not, and what licences and the plan say of the real run."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill._licences import verdict as licence_verdict
from distill._teacher_checks import teachers_of
from distill.distributed import world
from distill.errors import DistillError, first_line
from distill.hardware import hardware_of
from distill.planning import plan
from distill.recipe import STAGES, YOURS, Recipe
from distill.run_folder import RunFolder

NEVER_PROVEN = (
    "the real weights: that they can be downloaded, load, and teach anything",
    "speed, and memory beyond a width of 64",
)
SCORES = "scores: random models know nothing, so the figures of report.html mean nothing"


@dataclass(frozen=True)
class Told:
    """What is known before the rehearsal runs."""

    recipe: Recipe
    folder: Path
    shapes: tuple[str, ...]
    not_proven: tuple[str, ...]
    to_know: tuple[str, ...]
    """Of the real run: what stops nothing."""
    licences: tuple[str, ...]


def licence_sentences(recipe: Recipe) -> tuple[str, ...]:
    """The licences' verdict on the real recipe, and what the run will ask for."""
    found = licence_verdict(recipe)
    sentences = [f"{found.level}: nothing speaks against it" if found.level == "ok" else found.level]
    sentences += found.sentences
    if found.to_accept:
        accepted = ",".join([*recipe.licence.accept, *found.to_accept])
        sentences.append(f"The run itself will ask for licence.accept=[{accepted}].")
    return tuple(sentences)


def summary(told: Told, *, seconds: float, stopped_by: str | None) -> str:
    """rehearsal.md as text: Markdown that reads well in a terminal."""
    run = RunFolder.read(told.folder)
    last = told.recipe.until
    how = "stopped" if stopped_by else "passed" if last == STAGES[-1] else f"passed, up to until={last}"
    peak = f"{peak_bytes() / 1e9:.1f} GB at most"
    processes = f", {world().size} processes" if world().size > 1 else ""
    lines = [f"# Rehearsal of {told.recipe.name}: {how}", "", f"{seconds:.0f} s, {peak}{processes}.", ""]
    if stopped_by:
        lines += ["## What stopped it", "", stopped_by, ""]
    lines += ["## Proven", "", *_bullets(_proven(run)), ""]
    lines += ["## With", "", *_bullets(told.shapes), ""] if told.shapes else []
    not_proven = (*_not_reached(told.recipe), *told.not_proven, *_alone(told.recipe), *NEVER_PROVEN)
    scored = (SCORES,) if (told.folder / "scores.json").is_file() else ()
    lines += ["## Not proven", "", *_bullets((*not_proven, *scored)), ""]
    lines += ["## Notes", "", *_bullets(told.to_know), ""] if told.to_know else []
    lines += ["## Licences", "", *_bullets(told.licences), ""]
    plan = None if stopped_by else _plan(told.recipe)
    lines += ["## Plan", "", plan, ""] if plan else []
    return "\n".join(lines)


def peak_bytes() -> int:
    """Peak resident memory of this process and its largest child together: more than was ever in use at once."""
    unit = 1 if sys.platform == "darwin" else 1024
    of = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * sum(resource.getrusage(who).ru_maxrss for who in of)


def _proven(run: RunFolder) -> list[str]:
    """A line for each finished stage; verification and evaluation with what they found."""
    lines = [f"{stage['name']}: {stage['seconds']:.0f} s" for stage in run.stages if stage["name"][:6] != "verify"]
    for proof in run.verification:
        if proof.get("verified"):
            said = f"{proof['kl_to_student_nats']:.1g} nats from its student"
            lines.append(f"verify {proof['package']}: loads in {proof['runtime']}, {said}, the same tokens")
    if (run.path / "report.html").is_file():
        lines.append("report: report.html, scores.json, model cards")
    return lines or ["nothing"]


def _not_reached(recipe: Recipe) -> list[str]:
    """A sentence on the stages behind `until`."""
    rest = STAGES[len(recipe.stages) :]
    return [f"{', '.join(rest)}: until={recipe.until} ends before them"] if rest else []


def _alone(recipe: Recipe) -> list[str]:
    """A sentence where the recipe is meant for several devices and this was one process."""
    trains = "train" in recipe.stages
    if world().size > 1 or recipe.hardware is None or hardware_of(recipe.hardware).count == 1 or not trains:
        return []
    return ["training in several processes: torchrun --nproc-per-node 2 -m distill … rehearse=true shows it here"]


def _plan(recipe: Recipe) -> str | None:
    """The plan's verdict; a sentence when it cannot be made, since a rehearsal needs none."""
    if any(getattr(teacher, "model", None) == YOURS for teacher in teachers_of(recipe).values()):
        return "no plan: teacher.model is left to you"
    try:
        return plan(recipe).verdict
    except DistillError as error:
        return f"no plan: {first_line(error)}"
    except Exception as error:  # what was rehearsed stands all the same
        return f"no plan: {type(error).__name__}: {error}. This is a fault of distill's plan, not of the recipe."


def _bullets(sentences: Any) -> list[str]:
    return [f"* {sentence}" for sentence in sentences]
