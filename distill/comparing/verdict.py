"""What may be said of a difference, and what not: one seed says nothing of the spread, few seeds say little."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from distill.comparing.groups import Entry, Group, RecipeRuns, Spread, mean_of
from distill.comparing.recipe_keys import Keys, differing, shown
from distill.comparing.runs import ScoredRun
from distill.stages._number import Score, is_finite, size
from distill.stages.report import pick

Word = Literal["best", "overlap", "apart", "1 seed", ""]
MEANING = {
    "best": "best mean of its kind, equal ones too; of one seed, no more than that",
    "overlap": "its range and that of the best overlap: the seeds show no difference",
    "apart": "its range and that of the best do not overlap",
    "1 seed": "one seed on a side: nothing says how much of the difference is chance",
}
MOST_TOLD = 6
"""Differences that text names; the page has a table of all."""
MOST_DESCRIBED = 3
"""Differences that stand in a recipe's place in a sentence; of more, its name does."""
HALF = 40
"""Characters kept at each end of a long value."""


def verdicts(group: Group) -> list[Word]:
    """One word a line of the table: each student against the best student, each package against the best package.

    Packages of the best one's own recipe get no word: they share its seeds' ups and downs.
    """
    best, competing = {kind: best_of(group, kind) for kind in ("student", "package")}, group.competing
    return [_word(entry, best.get(entry.kind), group) if entry in competing else "" for entry in group.entries]


def best_of(group: Group, kind: str) -> Entry | None:
    """The entry of this kind with the best mean of the task's score; the first of equals. None without a score.

    A package that was not verified is never the best.
    """
    found = [(entry, of_it.mean) for entry in group.competing if (of_it := entry.score(group.task))]
    found = [(entry, mean) for entry, mean in found if entry.kind == kind and (kind != "package" or entry.verified)]
    best = group.score.best(mean for _, mean in found)
    return next((entry for entry, mean in found if mean == best), None)


def chance_of_separation(one: int, other: int) -> float:
    """How often the ranges of `one` and `other` seeds do not overlap where the two recipes are equal.

    All orders of the one + other results are then equally likely, and two of the C(one + other, one) ways to mix
    them are unmixed (the permutation test of complete separation): 1 for one seed each, 1/10 for three each.
    """
    return 2 / math.comb(one + other, one)


def headlines(group: Group) -> list[str]:
    """Two sentences at most: which recipe is best and what that is worth, and which package to take."""
    return [said for said in (_best_recipe(group), _package(group)) if said]


def as_models(entries: Sequence[Entry], task: str) -> list[dict[str, Any]]:
    """Lines of the table as models of scores.json, means in place of figures: what `pick` and the figure take."""
    return [
        {
            "name": entry.title,
            "kind": entry.kind,
            "bytes": mean_of(entry.bytes),
            "scores": {task: found.mean} if (found := entry.score(task)) else {},
            "verified": entry.verified,
        }
        for entry in entries
    ]


def to_take(group: Group) -> Entry | None:
    """The package to take: the smallest verified one whose mean is within one point (one percent) of the best."""
    models = as_models(group.competing, group.task)
    chosen = pick(models, group.task)
    return None if chosen is None else next(e for e, m in zip(group.competing, models, strict=True) if m is chosen)


def best_made(entry: Entry, group: Group) -> tuple[ScoredRun, Path]:
    """The run that made the best of an entry's models, and the folder of that model."""
    scored = [(made, value) for made in entry.made if is_finite(value := (made[1].scores or {}).get(group.task))]
    best = group.score.best(value for _, value in scored)
    run, model = next(made for made, value in scored if value == best)
    return run, run.path / (model.path or "")


def described(recipe: RecipeRuns, keys: Sequence[str]) -> str:
    """What sets a recipe apart: `loss.kind=jsd, name=mine`; its name where nothing or too much does."""
    if not keys or len(keys) > MOST_DESCRIBED:
        return recipe.name
    return ", ".join(f"{key}={brief(value_of(recipe, key))}" for key in keys)


def telling(group: Group) -> list[str]:
    """The differences that a line of text has room for: all where they are few, else the name and what sets apart
    recipes of one name."""
    if len(group.differences) <= MOST_TOLD:
        return list(group.differences)
    by_name: dict[str, list[Keys]] = {}
    for recipe in group.recipes:
        by_name.setdefault(recipe.name, []).append(recipe.keys)
    return ["name", *sorted({key for same in by_name.values() for key in differing(same)})][:MOST_TOLD]


def brief(value: str) -> str:
    """A value for a line of text: the middle of a long one is left out."""
    return value if len(value) <= 2 * HALF else f"{value[:HALF]}…{value[-HALF:]}"


def value_of(recipe: RecipeRuns, key: str) -> str:
    """The value as a recipe writes it; a dash where the recipe has no such key."""
    return shown(recipe.keys.values[key]) if key in recipe.keys.values else "–"


def written(found: Spread | None, score: Score) -> str:
    """`84.9 % (82.8–87.3, 3 seeds)`, `84.9 %` for one seed."""
    mean = f"{score.show(mean_of(found))} {score.unit}".rstrip()
    if found is None or found.num_seeds == 1:
        return mean
    return f"{mean} ({found.range(score)}, {found.num_seeds} seeds)"


def _word(entry: Entry, best: Entry | None, group: Group) -> Word:
    found = entry.score(group.task)
    if best is None or found is None:
        return ""
    if _shown(entry, group) == _shown(best, group) and (entry.kind != "package" or entry.verified):
        # where all show the same, none is better than another
        shown_means = {_shown(other, group) for other in group.competing if other.kind == entry.kind}
        return "best" if len(shown_means) > 1 else ""
    if entry.recipes == best.recipes:
        return ""
    of_best = best.score(group.task)
    assert of_best is not None, "the best one was chosen by it"
    if min(found.num_seeds, of_best.num_seeds) == 1:
        return "1 seed"
    return "overlap" if _overlap(found, of_best) else "apart"


def _shown(entry: Entry, group: Group) -> str:
    return group.score.show(mean_of(entry.score(group.task)))


def _best_recipe(group: Group) -> str:
    competing = [recipe for recipe in group.recipes if recipe.student and not recipe.teaches]
    students = [(recipe, of_it) for recipe in competing if (of_it := _student(recipe).score(group.task))]
    if not students:
        return ""
    best, first = students[0]
    names = _names(group)
    said = f"{names[best.letter]}: the student's {group.score.title} is {written(first, group.score)}"
    if len(students) == 1:
        return said + ("." if first.num_seeds > 1 else "; one seed says nothing of the spread.")
    next_best, second = students[1]
    ahead = f"{said}, {_ahead(first, second, group.score)} {names[next_best.letter]}, {written(second, group.score)}"
    return f"{ahead}. {_worth(first, second)}"


def _student(recipe: RecipeRuns) -> Entry:
    assert recipe.student is not None
    return recipe.student


def _names(group: Group) -> Mapping[str, str]:
    return {
        recipe.letter: f"{recipe.letter} ({described(recipe, telling(group))})"
        if len(group.recipes) > 1
        else recipe.name
        for recipe in group.recipes
    }


def _ahead(first: Spread, second: Spread, score: Score) -> str:
    lead = abs(first.mean - second.mean)
    if score.show(first.mean) == score.show(second.mean):
        return "as much as"
    amount = f"{100 * lead:.1f} points" if score.unit == "%" else f"{score.show(lead)} {score.unit}".rstrip()
    return f"{amount} {'less' if score.lower_is_better else 'more'} than"


def _worth(first: Spread, second: Spread) -> str:
    one, other = first.num_seeds, second.num_seeds
    if min(one, other) == 1:
        return "With one seed on a side, nothing says how much of that is chance: seed=0,1,2 does."
    if _overlap(first, second):
        return "The ranges overlap: these seeds show no difference."
    chance = 100 * chance_of_separation(one, other)
    return (
        f"The ranges do not overlap; {one} and {other} seeds of equal recipes would do that in {chance:.2g} % of cases."
    )


def _package(group: Group) -> str:
    chosen = to_take(group)
    found = chosen.score(group.task) if chosen else None
    if chosen is None or chosen.bytes is None or (group.score.unit == "%" and found and not found.mean):
        return ""  # nothing right at all recommends nothing
    reach = f"{written(found, group.score)} in {size(chosen.bytes.mean)}"
    slack = "a point" if group.score.unit == "%" else "one percent"
    said = f"Package to take: {chosen.title}, {reach}, the smallest verified one within {slack} of the best"
    run, folder = best_made(chosen, group)
    seed = f", the best of its seeds ({run.seed})" if len(chosen.made) > 1 else ""
    return f"{said}: {folder}{seed}."


def _overlap(one: Spread, other: Spread) -> bool:
    return one.low <= other.high and other.low <= one.high
