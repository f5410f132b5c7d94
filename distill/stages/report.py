"""The last stage: what a run made, for people. `report.html`, model cards, and a table in the terminal.

Everything is read back from the run folder, so a report can be written again at any time, without the models.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.run_folder import RunFolder
from distill.stages._card import write_card
from distill.stages._figure import curves, loss_svg, quality_svg
from distill.stages._number import MISSING, digits, is_finite, score, scores_of, size
from distill.stages._page import pair, render
from distill.stages._rehearsed import banner
from distill.stages._samples import side_by_side
from distill.stages._table import print_table

__all__ = ["print_table", "write_card", "write_report"]


def write_report(run: Path) -> Path:
    """Writes `run`/report.html, one page that opens from disk without a network, and returns its path.

    What is missing in the folder (a stage that did not run, a score that does not exist) is missing on the page.
    All text from outside (prompts, answers, names, the recipe) is escaped, and the page forbids scripts.
    """
    page = render(Path(__file__).with_name("_report.html.j2"), page_of(RunFolder.read(run)))
    path = run / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def page_of(folder: RunFolder) -> dict[str, Any]:
    """What the template shows, under the names that it uses."""
    task, warning = folder.task, banner(folder.recipe)
    return {
        "banner": warning,
        "name": folder.name,
        "folder": folder.path.name,
        "start": folder.start,
        "recipe": folder.recipe,
        "recipe_text": folder.recipe_text,
        "seed": folder.scores.get("seed", folder.start.get("seed")),
        # figures of random weights recommend nothing
        "headline": "" if warning else headline(folder.models, task),
        "tiles": [] if warning else tiles(folder.models, task),
        "quality": pair(quality_svg, folder.models, task) if task else [],
        "kinds": [k for k in ("teacher", "baseline", "student", "package") if _first(folder.models, k)],
        "columns": scores_of(folder.models, task),
        "rows": score_rows(folder.models, task),
        "has_adapter": any(model.get("base_bytes") for model in folder.models),
        "proofs": folder.verification,
        "proofs_have_detail": any(proof.get("detail") for proof in folder.verification),
        "losses": pair(loss_svg, folder.metrics),
        "curves": list(curves(folder.metrics)),
        "samples": side_by_side(folder.samples),
        "num_samples": len(folder.samples),
        "stages": folder.stages,
        "num_starts": folder.num_starts,
        "seconds": sum(stage.get("seconds") or 0 for stage in folder.stages),
    }


def pick(models: Sequence[Mapping[str, Any]], task: str | None) -> Mapping[str, Any] | None:
    """The package to take: the smallest verified one within one point (one percent) of the best, or None."""
    if task is None:
        return None
    shown = score(task)
    found = [m for m in models if m.get("kind") == "package" and m.get("verified") and is_finite(m.get("bytes"))]
    found = [m for m in found if is_finite(_value(m, task))]
    best = shown.best(_value(m, task) for m in found)
    if best is None:
        return None
    slack = 0.01 if shown.unit == "%" else 0.01 * abs(best)
    close = [m for m in found if abs(_value(m, task) - best) <= slack + 1e-12]
    return min(close, key=lambda m: m["bytes"])


def headline(models: Sequence[Mapping[str, Any]], task: str | None) -> str:
    """One sentence: what to take and what it costs against the teacher; empty where nothing is verified and scored."""
    chosen = pick(models, task)
    if chosen is None or task is None:
        return ""
    shown, teacher = score(task), _first(models, "teacher")
    value = _value(chosen, task)
    said = f"{chosen['name']} reaches {shown.show(value)}{_unit(shown.unit)} {shown.title} in {size(chosen['bytes'])}"
    if teacher is None:
        return f"{said}."
    of_teacher = _value(teacher, task)
    if shown.unit == "%" and is_finite(of_teacher) and of_teacher > 0:
        said += f": {100 * value / of_teacher:.0f} % of what the teacher reaches"
    if is_finite(teacher.get("bytes")) and teacher["bytes"] > chosen["bytes"]:
        said += f", {_times(teacher['bytes'], chosen['bytes'])} times smaller"
        said += "" if shown.unit == "%" else " than the teacher"
    if shown.unit != "%" and is_finite(of_teacher):
        said += f"; the teacher reaches {shown.show(of_teacher)}"
    # no line break between a figure and its unit
    return f"{said}.".replace(" %", "\u00a0%").replace(" times", "\u00a0times")


def tiles(models: Sequence[Mapping[str, Any]], task: str | None) -> list[dict[str, str]]:
    """The few figures at the top: teacher, student, the package to take, and what the teacher was good for."""
    if task is None:
        return []
    shown, found = score(task), []
    student, chosen = _first(models, "student"), pick(models, task)
    for title, model in (("teacher", _first(models, "teacher")), ("student", student), ("package to take", chosen)):
        if model is not None and is_finite(_value(model, task)):
            note = f"{shown.title} · {size(model.get('bytes'))}"
            note = f"{model['name']} · {size(model.get('bytes'))}" if model is chosen else note
            found.append(_tile(title, shown.show(_value(model, task)), _unit(shown.unit), note, str(model["kind"])))
    for model in models:
        if (
            model.get("kind") == "baseline"
            and student
            and is_finite(_value(model, task))
            and is_finite(_value(student, task))
        ):
            gain = _value(student, task) - _value(model, task)
            amount, unit = (100 * gain, " points") if shown.unit == "%" else (gain, "")
            written = f"{amount:+.1f}" if unit else f"{'+' if amount >= 0 else '−'}{digits(abs(amount))}"
            found.append(_tile("student against", written.replace("-", "−"), unit, str(model["name"]), "baseline"))
    packages = [m for m in models if m.get("kind") == "package"]
    if packages:
        verified = sum(m.get("verified") is True for m in packages)
        found.append(_tile("verified", f"{verified}", f" of {len(packages)}", "loaded in a fresh process", "package"))
    return found


def score_rows(models: Sequence[Mapping[str, Any]], task: str | None) -> list[dict[str, Any]]:
    """The lines of the score table; `best` marks the best of student and packages."""
    columns = scores_of(models, task)
    own = [m for m in models if m.get("kind") in {"student", "package"}]
    best = {column.name: column.best(_value(m, column.name) for m in own) for column in columns}
    smallest = min((m["bytes"] for m in own if is_finite(m.get("bytes"))), default=None)
    teacher = _first(models, "teacher") or {}
    rows = []
    for model in models:
        cells = []
        for column in columns:
            value = _value(model, column.name)
            itself = column.is_of_itself(model.get("kind"))
            # two that read the same are both the best: more digits would be noise
            is_best = model in own and len(own) > 1 and column.show(value) == column.show(best[column.name])
            is_best = is_best and value is not None
            cells.append({"text": "" if itself else column.show(value), "best": is_best})
        num_bytes, of_teacher = model.get("bytes"), teacher.get("bytes")
        rows.append(
            {
                "name": model["name"],
                "kind": str(model.get("kind")),
                "parameters": model.get("parameters"),
                "cells": cells,
                "bytes": num_bytes,
                "smallest": model in own and num_bytes is not None and num_bytes == smallest,
                "times_smaller": "" if model.get("kind") == "teacher" else _times(of_teacher, num_bytes),
                "speed": model.get("speed") or {},
                "verified": model.get("verified"),
            }
        )
    return rows


def _first(models: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    return next((model for model in models if model.get("kind") == kind), None)


def _value(model: Mapping[str, Any], name: str) -> Any:
    return (model.get("scores") or {}).get(name)


def _times(of_teacher: float | None, num_bytes: float | None) -> str:
    if not (is_finite(of_teacher) and is_finite(num_bytes) and num_bytes):
        return MISSING
    times = of_teacher / num_bytes
    return f"{times:.1f}" if times < 10 else f"{times:,.0f}"


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _tile(title: str, value: str, unit: str, note: str, kind: str) -> dict[str, str]:
    return {"title": title, "value": value, "unit": unit, "note": note, "kind": kind}
