"""Run folders to compare: the sample run of tests/stages with other seeds, options and scores."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

SAMPLE = Path(__file__).parent.parent / "stages" / "sample_run"


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    scores: Mapping[str, float] | None = None,
    keys: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    started: str = "2026-11-22T03:10:05+00:00",
    rows: str | None = "0123456789abcdef0123",
    report: bool = False,
) -> Path:
    """A finished run in `folder`.

    Args:
        scores: model → exact match; models that are not named are left out.
        keys: dotted recipe key → value. options: group → option, as `loss=jsd` would choose it.
        rows: what scores.json says of the evaluation rows; None: nothing, as older versions do.
    """
    shutil.copytree(SAMPLE, folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["seed"] = seed
    for group, option in (options or {}).items():
        recipe["defaults"] = [
            {name: option if name == f"override /{group}" else own for name, own in default.items()}
            for default in recipe["defaults"]
        ]
    for key, value in (keys or {}).items():
        *owners, name = key.split(".")
        body = recipe
        for owner in owners:
            body = body.setdefault(owner, {})
        body[name] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    whole = json.loads((folder / "scores.json").read_text())
    whole |= {"recipe": recipe["name"], "seed": seed, "run": folder.name} | ({"evaluation_rows": rows} if rows else {})
    if scores is not None:
        whole["models"] = [model for model in whole["models"] if model["name"] in scores]
        for model in whole["models"]:
            model["scores"]["exact_match"] = scores[model["name"]]
    (folder / "scores.json").write_text(json.dumps(whole))
    lines = (folder / "record.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    events = [{**event, "time": started, "seed": seed} if event["event"] == "start" else event for event in events]
    (folder / "record.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    if report:
        (folder / "report.html").write_text("<p>a report</p>")
    return folder


def edit(file: Path, change) -> None:
    """Replaces a JSON file's value by what `change` returns of it, or leaves of it."""
    value = json.loads(file.read_text())
    file.write_text(json.dumps(change(value) or value))


def sweep(folder: Path, results: Mapping[str, Mapping[int, float]], **how: Any) -> Path:
    """One run for each loss and seed, with the student's exact match given."""
    for loss, by_seed in results.items():
        for seed, value in by_seed.items():
            make_run(folder / f"{loss}_{seed}", seed=seed, scores={"student": value}, options={"loss": loss}, **how)
    return folder
