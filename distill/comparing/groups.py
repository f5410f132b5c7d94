"""group_runs(): runs → groups judged on the same rows → recipes (all seeds together) → the models of each recipe."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.comparing.judged_on import judged_on
from distill.comparing.recipe_keys import Keys, differing, shown, students_keys
from distill.comparing.runs import Model, ScoredRun
from distill.stages._number import Score, is_finite, score, scores_of

Made = tuple[ScoredRun, Model]
"""A model and the run that made it."""


@dataclass(frozen=True)
class Spread:
    """One figure over the seeds of a recipe."""

    mean: float
    low: float
    high: float
    num_seeds: int

    def range(self, score: Score) -> str:
        """`82.8–87.3`, as the score is written; empty for one seed."""
        return f"{score.show(self.low)}–{score.show(self.high)}" if self.num_seeds > 1 else ""


@dataclass(frozen=True)
class Entry:
    """A model over all seeds of its recipe: one line of the table. `made` has one item a seed, by rising seed.

    `recipes` are the letters of those that it belongs to; none where all share it, or there is but one.
    """

    name: str
    kind: str
    made: tuple[Made, ...]
    recipes: tuple[str, ...] = ()

    def score(self, name: str) -> Spread | None:
        """The score called `name` over the seeds that have it."""
        return spread((model.scores or {}).get(name) for _, model in self.made)

    def cell(self, score: Score) -> tuple[str, str]:
        """(mean, lowest to highest where there are several seeds); empty for a teacher's agreement with itself."""
        if score.is_of_itself(self.kind):
            return "", ""
        found = self.score(score.name)
        return score.show(mean_of(found)), found.range(score) if found else ""

    def num_seeds(self, name: str) -> int | None:
        """Seeds that have the score called `name`; None where none has it, and for a teacher, which has no seed."""
        found = self.score(name)
        return found.num_seeds if found and self.kind != "teacher" else None

    def speed(self, name: str) -> Spread | None:
        """Tokens per second, `name` being decode or prefill."""
        return spread((model.speed or {}).get(f"{name}_tokens_per_second") for _, model in self.made)

    @property
    def bytes(self) -> Spread | None:
        return spread(model.needed_bytes for _, model in self.made)

    @property
    def verified(self) -> bool | None:
        """Of every seed; None where nothing was to be verified."""
        told = [model.verified for _, model in self.made if model.verified is not None]
        return all(told) if told else None

    @property
    def title(self) -> str:
        """`A bf16`; without letters where all recipes share it."""
        return " ".join([", ".join(self.recipes), self.name] if self.recipes else [self.name])


@dataclass(frozen=True)
class RecipeRuns:
    """Runs that differ in nothing but their seeds. `entries`: its student, then its packages. One alone has no letter.

    `teaches`: letters of the recipes whose teacher is one of its packages; they compete with each other, not with it.
    """

    letter: str
    name: str
    keys: Keys
    entries: tuple[Entry, ...]
    runs: tuple[ScoredRun, ...]
    teaches: tuple[str, ...] = ()

    @property
    def student(self) -> Entry | None:
        return next((entry for entry in self.entries if entry.kind == "student"), None)

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs if run.seed is not None})


@dataclass(frozen=True)
class Group:
    """Recipes that may be compared, the best student first, teachers' own recipes last. `shared`: teachers, baselines.

    `differences` are the recipe keys that are not equal in all of its recipes; `outdated` maps a run that says
    nothing any more to the newer one of the same recipe and seed.
    """

    task: str
    judged_on: Keys
    recipes: tuple[RecipeRuns, ...]
    shared: tuple[Entry, ...]
    differences: tuple[str, ...]
    outdated: tuple[tuple[ScoredRun, ScoredRun], ...]

    @property
    def score(self) -> Score:
        """How the task's score is written."""
        return score(self.task)

    @property
    def competing(self) -> list[Entry]:
        """Students and packages, without those of recipes that teach another one of the group."""
        return [entry for recipe in self.recipes if not recipe.teaches for entry in recipe.entries]

    @property
    def entries(self) -> list[Entry]:
        """All lines of the table, in its order."""
        return [*self.shared, *(entry for recipe in self.recipes for entry in recipe.entries)]

    @property
    def scores(self) -> list[Score]:
        """Every score that a model has, the task first."""
        models = [{"scores": model.scores} for entry in self.entries for _, model in entry.made]
        return scores_of(models, self.task)

    @property
    def has_ranges(self) -> bool:
        """Whether any model has the task's score for several seeds."""
        return any((found := entry.score(self.task)) and found.num_seeds > 1 for entry in self.entries)

    @property
    def has_proofs(self) -> bool:
        return any(entry.verified is not None for entry in self.entries)

    @property
    def num_rows(self) -> int | None:
        """Evaluation rows that the task's score is over; None where runs do not say so alike."""
        told = {(model.scored_rows or {}).get(self.task) for entry in self.entries for _, model in entry.made}
        told.discard(None)
        return told.pop() if len(told) == 1 else None


def group_runs(runs: Iterable[ScoredRun]) -> list[Group]:
    """Groups by what was judged, the one with most runs first. The order of `runs` does not matter."""
    by_rows: dict[str, list[ScoredRun]] = {}
    judged: dict[str, Keys] = {}
    ordered = sorted(runs, key=lambda run: run.age)
    hashes = _hashes(ordered)
    for run in ordered:
        told = hashes.get(_judged_by_keys(run), set())
        # an older version recorded no hash; others of the same keys all agree on one
        known = {"evaluation_rows": min(told)} if len(told) == 1 else {}
        where = judged_on(run.keys, {**known, **run.folder.scores}, run.folder.task)
        judged[where.identity] = where
        by_rows.setdefault(where.identity, []).append(run)
    order = sorted(by_rows, key=lambda identity: (-len(by_rows[identity]), identity))
    return [_group(by_rows[identity], judged[identity]) for identity in order]


def _hashes(runs: Iterable[ScoredRun]) -> dict[str, set[str]]:
    """Keys that choose evaluation rows → the hashes of these rows that runs with such keys recorded."""
    found: dict[str, set[str]] = {}
    for run in runs:
        if isinstance(rows := run.folder.scores.get("evaluation_rows"), str):
            found.setdefault(_judged_by_keys(run), set()).add(rows)
    return found


def _judged_by_keys(run: ScoredRun) -> str:
    return judged_on(run.keys, {}, run.folder.task).identity


def spread(values: Iterable[object]) -> Spread | None:
    """Mean, lowest and highest of the finite numbers among `values`; None without one."""
    finite = [float(value) for value in values if is_finite(value)]
    return Spread(sum(finite) / len(finite), min(finite), max(finite), len(finite)) if finite else None


def mean_of(found: Spread | None) -> float | None:
    """The mean; None of nothing."""
    return found.mean if found else None


def letter(place: int) -> str:
    """A, B, … Z, AA, AB, …"""
    return (letter(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def _group(runs: Sequence[ScoredRun], judged: Keys) -> Group:
    task = str(judged.values["task"])
    by_recipe: dict[str, list[ScoredRun]] = {}
    for run in runs:
        by_recipe.setdefault(students_keys(run.keys).identity, []).append(run)
    names = _package_names(runs)
    recipes = [_recipe(of_one, names) for of_one in by_recipe.values()]
    recipes = sorted(recipes, key=lambda recipe: (*_rank(recipe, recipes, task), recipe.keys.identity))
    letters = [letter(place) for place in range(len(recipes))] if len(recipes) > 1 else [""]
    lettered = []
    for own, recipe in zip(letters, recipes, strict=True):
        entries = tuple(replace(entry, recipes=(own,) if own else ()) for entry in recipe.entries)
        teaches = tuple(of for of, other in zip(letters, recipes, strict=True) if _is_teacher(recipe, other))
        lettered.append(replace(recipe, letter=own, entries=entries, teaches=teaches))
    shared = _shared(lettered)
    return Group(
        task=task,
        judged_on=judged,
        recipes=tuple(lettered),
        shared=tuple(shared),
        differences=tuple(differing([recipe.keys for recipe in lettered])),
        outdated=tuple(pair for recipe in lettered for pair in _outdated(recipe, shared)),
    )


def _recipe(runs: Sequence[ScoredRun], names: Mapping[str, str]) -> RecipeRuns:
    """The runs of one recipe, from the oldest; letters come later."""
    made: dict[tuple[str, str], dict[int | None, Made]] = {}
    for run in runs:
        for model in run.models:
            if model.kind in {"student", "package"}:
                name = names[_package(run, model)] if model.kind == "package" else model.name
                # a newer run of the same seed takes the place of the older
                made.setdefault((model.kind, name), {})[run.seed] = (run, model)
    order = sorted(made, key=lambda key: key[0] != "student")
    entries = tuple(Entry(name, kind, _by_seed(made[kind, name])) for kind, name in order)
    return RecipeRuns("", runs[-1].folder.name, students_keys(runs[-1].keys), entries, tuple(runs))


def _by_seed(made: Mapping[int | None, Made]) -> tuple[Made, ...]:
    return tuple(made[seed] for seed in sorted(made, key=lambda seed: (seed is None, seed or 0)))


def _rank(recipe: RecipeRuns, recipes: Sequence[RecipeRuns], task: str) -> tuple[bool, bool, float]:
    found = recipe.student.score(task) if recipe.student else None
    value = 0.0 if found is None else found.mean if score(task).lower_is_better else -found.mean
    return any(_is_teacher(recipe, other) for other in recipes), found is None, value


def _is_teacher(recipe: RecipeRuns, other: RecipeRuns) -> bool:
    """Whether `other` was taught by something in a run folder of `recipe`, wherever that was typed from."""
    model = Path(str(other.keys.values.get("teacher.model"))).parts
    folders = {run.path.resolve().parts[-2:] for run in recipe.runs}
    return any(model[at : at + 2] in folders for at in range(len(model) - 1))


def _package(run: ScoredRun, model: Model) -> str:
    """What makes a package what it is: its name and the options of its compression."""
    return f"{model.name} {_options(run, model).identity}"


def _options(run: ScoredRun, model: Model) -> Keys:
    """Those of a package's compression that decide what is made; max_kl_nats decides what is said of it."""
    options = run.keys.below(f"compression.{model.name}.")
    return options.only(key for key in options.values if key != "max_kl_nats")


def _package_names(runs: Iterable[ScoredRun]) -> dict[str, str]:
    """`_package` → the name in the table; packages of one name and several options say in which they differ."""
    options: dict[str, dict[str, Keys]] = {}
    for run in runs:
        for model in run.models:
            if model.kind == "package":
                options.setdefault(model.name, {})[_package(run, model)] = _options(run, model)
    names = {}
    for name, several in options.items():
        keys = differing(list(several.values()))
        for identity, own in several.items():
            said = " ".join(f"{key}={shown(own.values.get(key))}" for key in keys)
            names[identity] = f"{name} {said}".rstrip()
    return names


def _shared(recipes: Sequence[RecipeRuns]) -> list[Entry]:
    """Teachers and baselines. Recipes with the same one, seed by seed and figure by figure, share a line."""
    found: dict[str, tuple[Entry, list[str]]] = {}
    for recipe in recipes:
        made: dict[tuple[str, str], dict[int | None, Made]] = {}
        for run in recipe.runs:
            for model in run.models:
                if model.kind == "teacher":
                    # it has no seed; a second line would say that it was another one
                    made.setdefault((model.kind, model.name), {})[None] = (run, model)
                elif model.kind == "baseline":
                    made.setdefault((model.kind, model.name), {})[run.seed] = (run, model)
        for (kind, name), by_seed in made.items():
            entry = Entry(name, kind, _by_seed(by_seed))
            figures = [(run.seed if kind == "baseline" else model.path, _figures(model)) for run, model in entry.made]
            found.setdefault(repr((name, figures)), (entry, []))[1].append(recipe.letter)
    several = len(recipes) > 1
    entries = [
        replace(entry, recipes=tuple(letters) if several and len(letters) < len(recipes) else ())
        for entry, letters in found.values()
    ]
    return sorted(entries, key=lambda entry: (entry.kind != "teacher", entry.name, entry.recipes))


def _figures(model: Model) -> list[tuple[str, float | None]]:
    return sorted((model.scores or {}).items())


def _outdated(recipe: RecipeRuns, shared: Sequence[Entry]) -> Iterable[tuple[ScoredRun, ScoredRun]]:
    counting = {run.age for entry in (*recipe.entries, *shared) for run, _ in entry.made}
    for run in recipe.runs:
        if run.age not in counting:
            yield run, next(other for other in reversed(recipe.runs) if other.seed == run.seed)
