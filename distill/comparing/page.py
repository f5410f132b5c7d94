"""write_page(): the comparison as one HTML page that opens from disk without a network."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from distill.artifact import write_whole
from distill.comparing.facts import APART, judged_line, left_out_lines, notes, title_of
from distill.comparing.groups import Entry, Group, RecipeRuns, mean_of
from distill.comparing.runs import LeftOut, ScoredRun
from distill.comparing.verdict import MEANING, as_models, described, headlines, telling, value_of, verdicts
from distill.errors import RecipeError
from distill.stages._figure import NUM_SERIES, curves, loss_svg, pareto_front, quality_svg
from distill.stages._page import pair, render

OURS = '<meta name="generator" content="distill.compare">'
TEMPLATE = Path(__file__).with_name("_page.html.j2")
MOST_LABELS = 12
"""Points that all have their names; of more, packages off the front have theirs in the tooltip alone."""
MOST_STUDENTS = 60
"""Points beyond which that goes for all: nobody reads hundreds of names, and placing them takes a minute."""


def refuse_foreign(page: Path) -> None:
    """Raises RecipeError where `page` cannot be written, or is a file that this command did not write."""
    if page.exists() and not page.is_file():
        what = "a folder" if page.is_dir() else "no regular file"
        raise RecipeError(f"--html {page} is {what}. Name a file, such as compare.html.")
    if not page.absolute().parent.is_dir():
        raise RecipeError(f"--html {page}: there is no folder {page.parent}. Make it, or name another file.")
    if page.is_file() and OURS not in page.read_text(encoding="utf-8", errors="replace"):
        raise RecipeError(f"{page} is not a page of distill.compare and stays. Name another file: --html FILE")


def write_page(groups: Sequence[Group], left_out: Sequence[LeftOut], page: Path) -> None:
    """Writes `page`, with links to the runs' reports as seen from there. The same runs give the same bytes."""
    shown = [_group(group, groups, number, page) for number, group in enumerate(groups)]
    values = {
        "generator": OURS,
        "num_runs": sum(len(recipe.runs) for group in groups for recipe in group.recipes),
        "apart": APART if len(groups) > 1 else "",
        "groups": shown,
        "left_out": left_out_lines(left_out),
    }
    # a folder's name or a recorded command may hold bytes that are no UTF-8
    write_whole(page, render(TEMPLATE, values).encode("utf-8", "backslashreplace").decode("utf-8"))


def _group(group: Group, groups: Sequence[Group], number: int, page: Path) -> dict[str, Any]:
    """What the template shows of one group, under the names that it uses."""
    told, losses = verdicts(group), _losses(group)
    # by the recipe's place, as its tag: one without a curve shifts nobody's colour
    series = {recipe.letter or "student": place % NUM_SERIES for place, recipe in enumerate(group.recipes)}
    return {
        "title": title_of(group),
        "judged": judged_line(group, groups),
        "headlines": headlines(group),
        "recipes": [_recipe(recipe, place, group) for place, recipe in enumerate(group.recipes)],
        "has_ranges": group.has_ranges,
        "has_proofs": group.has_proofs,
        "kinds": [k for k in ("teacher", "baseline", "student", "package") if any(e.kind == k for e in group.entries)],
        "quality": pair(quality_svg, _points(group), group.task, name=f"quality-{number}"),
        "losses": pair(loss_svg, losses, name=f"loss-{number}", series=series),
        "curves": [(curve, series[curve]) for curve in curves(losses)],
        "columns": group.scores,
        "rows": [_row(entry, word, group) for entry, word in zip(group.entries, told, strict=True)],
        "meanings": {word: meaning for word, meaning in MEANING.items() if word in told},
        "differences": [(key, [value_of(recipe, key) for recipe in group.recipes]) for key in group.differences],
        "notes": notes(group),
        "runs": [_run(run, recipe, page) for recipe in group.recipes for run in recipe.runs],
    }


def _recipe(recipe: RecipeRuns, place: int, group: Group) -> dict[str, Any]:
    teaches = f", the teacher of {', '.join(recipe.teaches)}" if recipe.teaches else ""
    return {
        "letter": recipe.letter,
        "words": described(recipe, telling(group)) + teaches,
        "series": place % NUM_SERIES,
        "seeds": ", ".join(map(str, recipe.seeds)),
    }


def _points(group: Group) -> list[dict[str, Any]]:
    """The table's lines for the figure: a mark for each kind, a colour for each of several recipes, error bars."""
    models = as_models(group.entries, group.task)
    letters = [recipe.letter for recipe in group.recipes]
    drawn = [(m["bytes"], m["scores"][group.task]) for m in models if m["bytes"] and m["scores"]]
    crowded = len(drawn) > MOST_STUDENTS
    front = pareto_front(drawn, lower_is_better=group.score.lower_is_better)
    for model, entry in zip(models, group.entries, strict=True):
        found = entry.score(group.task)
        if found is not None and found.num_seeds > 1:
            model["range"] = (found.low, found.high)
        if entry.recipes and entry.kind in {"student", "package"}:
            place = letters.index(entry.recipes[0])
            # students of one architecture have the same bytes: side by side, as their bars would hide each other
            middle, step = (len(letters) - 1) / 2, min(0.012, 0.1 / len(letters))
            model |= {"series": place, "shift": (place - middle) * step}
        on_front = found is not None and (model["bytes"], found.mean) in front
        if len(drawn) > MOST_LABELS and not on_front and (entry.kind == "package" or crowded):
            model["label"] = ""
    return models


def _losses(group: Group) -> list[dict[str, Any]]:
    """Each student's curve, of its lowest seed: means over seeds would hide that a seed diverged."""
    lines = []
    for recipe in group.recipes:
        run = recipe.student.made[0][0] if recipe.student else recipe.runs[0]
        own = [line for line in run.folder.metrics if line.get("model") == "student"]
        lines += [{**line, "model": recipe.letter or "student"} for line in own]
    return lines


def _row(entry: Entry, word: str, group: Group) -> dict[str, Any]:
    return {
        "recipes": entry.recipes,
        "name": entry.name,
        "kind": entry.kind,
        "word": word,
        "cells": [entry.cell(score) for score in group.scores],
        "seeds": entry.num_seeds(group.task) or "",
        "bytes": mean_of(entry.bytes),
        "decode": mean_of(entry.speed("decode")),
        "verified": entry.verified,
    }


def _run(run: ScoredRun, recipe: RecipeRuns, page: Path) -> dict[str, Any]:
    report = run.path / "report.html"
    seen_from_here = os.path.relpath(report.resolve(), page.absolute().parent.resolve())
    start = run.folder.start
    return {
        "letter": recipe.letter,
        "seed": "" if run.seed is None else run.seed,
        "path": str(run.path),
        "report": quote(os.fsencode(seen_from_here)) if report.is_file() else "",
        "started": start.get("time") or "",
        "command": start.get("command") or "",
    }
