"""find_runs(): the finished, scored runs below folders, and why the others are left out."""

import datetime
import difflib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from distill.artifact import MANIFEST
from distill.comparing.recipe_keys import Keys, keys_of
from distill.errors import RecipeError
from distill.run_folder import RunFolder
from distill.stages._number import is_finite

MARKS = ("record.jsonl", "recipe.yaml")
"""A folder with one of them is a run; what lies deeper belongs to it."""
DEFAULT = Path("outputs")
"""Where runs are looked for when nobody names a folder."""


@checked(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="ignore"))
class Model:
    """One entry of scores.json, as far as runs are compared by it."""

    name: str
    kind: Literal["teacher", "baseline", "student", "package"]
    path: str | None = None
    bytes: float | None = None
    base_bytes: float = 0
    """Of the weights that an adapter is put on."""
    scores: dict[str, float | None] | None = None
    scored_rows: dict[str, int] | None = None
    speed: dict[str, Any] | None = None
    verified: bool | None = None

    @property
    def needed_bytes(self) -> float | None:
        """Of all that has to be there to run it."""
        return None if self.bytes is None else self.bytes + self.base_bytes


@dataclass(frozen=True)
class ScoredRun:
    """A run folder whose scores.json makes sense. `seed` is None where no file says it."""

    folder: RunFolder
    models: tuple[Model, ...]
    keys: Keys = field(repr=False)

    @property
    def path(self) -> Path:
        """As the user named it, or below what the user named."""
        return self.folder.path

    @property
    def seed(self) -> int | None:
        seed = self.folder.scores.get("seed", self.folder.recipe.get("seed"))
        return seed if isinstance(seed, int) else None

    @cached_property
    def age(self) -> tuple[float, str, str]:
        """Sorts runs from the oldest to the newest; the same for any order of arguments."""
        try:
            started = datetime.datetime.fromisoformat(str(self.folder.start.get("time"))).timestamp()
        except (ValueError, OverflowError, OSError):
            started = 0.0  # the record does not say
        return started, self.path.name, str(self.path.resolve())


@dataclass(frozen=True)
class LeftOut:
    """A run that is not compared, and why."""

    path: Path
    why: str


def find_runs(folders: Sequence[Path]) -> tuple[list[ScoredRun], list[LeftOut]]:
    """All runs at or below `folders`, each once.

    Raises:
        RecipeError: a folder does not exist, or there is no run at all.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        _check(folder)
        for run in _below(folder):
            found.setdefault(run.resolve(), run)
    if not found:
        where = ", ".join(str(folder) for folder in folders)
        raise RecipeError(
            f"{where}: no run is here or below. A run is a folder with a {MARKS[0]}, such as "
            "outputs/quickstart/<date>; python -m distill makes one."
        )
    runs, left_out = [], []
    for _, path in sorted(found.items()):
        read = _read(path)
        (runs if isinstance(read, ScoredRun) else left_out).append(read)
    return runs, left_out


def _check(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise RecipeError(f"{folder} is a file. Name the folder of a run, or a folder with runs below: {folder.parent}")
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, beside, n=1)
    hint = f"Did you mean {folder.parent / near[0]}?" if near else "Name the folder of a run, or one with runs below."
    if folder == DEFAULT and not near:
        hint = "Make a run: python -m distill; or name the folder of one."
    raise RecipeError(f"{folder} does not exist. {hint}")


def _below(folder: Path) -> Iterator[Path]:
    for where, names, files in os.walk(folder):
        if any(mark in files for mark in MARKS):
            yield Path(where)
            names.clear()
        elif MANIFEST in files:
            names.clear()  # an artifact of the store
        else:
            names[:] = sorted(name for name in names if not name.startswith("."))
            # os.walk follows no link, lest it goes in circles; one to a run itself is the run
            linked = [Path(where, name) for name in names if Path(where, name).is_symlink()]
            yield from (link for link in linked if any((link / mark).is_file() for mark in MARKS))


def _read(path: Path) -> ScoredRun | LeftOut:
    try:
        folder = RunFolder.read(path)
    except (ValueError, OSError) as error:
        return LeftOut(path, str(error))
    if folder.recipe.get("rehearse") is True:
        return LeftOut(path, "a rehearsal: tiny random models, no figure of it means anything")
    if not folder.scores:
        ran = [str(stage.get("name")) for stage in folder.stages]
        return LeftOut(path, f"not scored: it ended after {ran[-1]}" if ran else "not scored: no stage of it finished")
    try:
        # as JSON: strict types, yet objects become dataclasses and lists tuples
        models = TypeAdapter(tuple[Model, ...]).validate_json(json.dumps(folder.scores.get("models") or []))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("models", *first["loc"]))
        return LeftOut(path, f"scores.json is broken: {where}: {first['msg'][0].lower()}{first['msg'][1:]}")
    if folder.task is None or not any(is_finite(value) for each in models for value in (each.scores or {}).values()):
        return LeftOut(path, "its scores.json holds no score")
    return ScoredRun(folder, models, keys_of(folder.recipe))


def nothing_left(left_out: Sequence[LeftOut]) -> RecipeError:
    """What to say where runs were found, but none that can be compared."""
    lines = [f"{each.path}: {each.why}." for each in left_out[:3]]
    more = [f"… and {len(left_out) - 3} more"] if len(left_out) > 3 else []
    head = "None of the runs here is finished and scored; python -m distill recipe=NAME runs one to its end."
    return RecipeError("\n".join([head, *lines, *more]))
