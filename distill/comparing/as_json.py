"""as_json(): the comparison for programs, with full digits."""

import json
from collections.abc import Sequence
from typing import Any

from distill.comparing.facts import notes
from distill.comparing.groups import Entry, Group, RecipeRuns, Spread
from distill.comparing.runs import LeftOut
from distill.comparing.verdict import best_made, headlines, to_take, verdicts


def as_json(groups: Sequence[Group], left_out: Sequence[LeftOut]) -> str:
    """`{"groups": [...], "left_out": [...]}`; scores as in scores.json, each with mean, low, high and seeds."""
    whole = {
        "groups": [_group(group) for group in groups],
        "left_out": [{"run": str(each.path), "why": each.why} for each in left_out],
    }
    return json.dumps(whole, indent=1, default=str)


def _group(group: Group) -> dict[str, Any]:
    taken = to_take(group)
    return {
        "task": group.task,
        "judged_on": group.judged_on.values,
        "rows": group.num_rows,
        "differences": list(group.differences),
        "recipes": [_recipe(recipe, group) for recipe in group.recipes],
        "models": [_model(entry, word) for entry, word in zip(group.entries, verdicts(group), strict=True)],
        "package_to_take": {"name": taken.title, "folder": str(best_made(taken, group)[1])} if taken else None,
        "verdict": headlines(group),
        "notes": notes(group),
    }


def _recipe(recipe: RecipeRuns, group: Group) -> dict[str, Any]:
    return {
        "letter": recipe.letter or None,
        "name": recipe.name,
        "teaches": list(recipe.teaches),
        "seeds": recipe.seeds,
        "runs": [str(run.path) for run in recipe.runs],
        "differs": {key: recipe.keys.values[key] for key in group.differences if key in recipe.keys.values},
    }


def _model(entry: Entry, word: str) -> dict[str, Any]:
    names = dict.fromkeys(name for _, model in entry.made for name in model.scores or {})
    return {
        "name": entry.name,
        "kind": entry.kind,
        "recipes": list(entry.recipes),
        "scores": {name: _spread(entry.score(name)) for name in names},
        "bytes": _spread(entry.bytes),
        "decode_tokens_per_second": _spread(entry.speed("decode")),
        "verified": entry.verified,
        "against_best": word or None,
        "runs": [str(run.path) for run, _ in entry.made],
    }


def _spread(found: Spread | None) -> dict[str, float] | None:
    return None if found is None else {**vars(found)}
