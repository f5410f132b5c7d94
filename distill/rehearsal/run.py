"""rehearse(): the rehearsed recipe through the very pipeline that runs it for real, then what that proved."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.distributed import world
from distill.errors import DistillError
from distill.pipeline import run
from distill.progress import console
from distill.recipe import Recipe, parse
from distill.rehearsal._sources import student_source, teacher_sources
from distill.rehearsal._summary import Told, licence_sentences, summary
from distill.rehearsal.check import check_rehearsal, gated_unproven
from distill.rehearsal.recipe import Rehearsed, rehearsed

FILE = "rehearsal.md"
STANDS = "rehearsal"
"""Folder of the run in which the stand-ins, the sample and a store of its own lie."""


def rehearse(recipe: Recipe, folder: Path, notes: Sequence[str] = ()) -> None:
    """Runs the recipe with tiny models up to `recipe.until`, and leaves `rehearsal.md` in the run folder.

    The user's store is neither read nor written. Under several processes all of them train, as in the real run.

    Raises:
        DistillError: what would have stopped the real run; `rehearsal.md` says how far it came.
    """
    started = time.monotonic()
    console().print(f"Rehearsal of {recipe.name}: tiny random models of the same architectures, two steps each.")
    to_know = check_rehearsal(recipe)
    own = student_source(recipe)
    sources = [*teacher_sources(recipe).values(), *([own] if own else [])]
    made = _prepared(recipe, folder / STANDS)
    unproven = [*made.not_proven, *gated_unproven(sources)]
    told = Told(recipe, folder, made.shapes, tuple(unproven), to_know, licence_sentences(recipe))
    try:
        with _store_in(folder / STANDS / "store"):
            run(made.recipe, folder, (*notes, *to_know))
    except DistillError as error:
        _tell(told, started, str(error))
        raise
    _tell(told, started, None)


def _prepared(recipe: Recipe, folder: Path) -> Rehearsed:
    """What the first process makes; the others read the same recipe from it."""
    processes = world()
    if processes.leads:
        made = rehearsed(recipe, folder, processes.size)
        processes.share(dataclasses.asdict(made.recipe))
        return made
    return Rehearsed(parse(processes.share()), (), ())


@contextlib.contextmanager
def _store_in(folder: Path) -> Iterator[None]:
    """The store is `folder`, for this process and those that it starts: DISTILL_STORE says where a store is."""
    before = os.environ.get("DISTILL_STORE")
    os.environ["DISTILL_STORE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISTILL_STORE"]
        else:
            os.environ["DISTILL_STORE"] = before


def _tell(told: Told, started: float, stopped_by: str | None) -> None:
    if not world().leads:
        return
    text = summary(told, seconds=time.monotonic() - started, stopped_by=stopped_by)
    (told.folder / FILE).write_text(text, encoding="utf-8")
    if stopped_by is None:
        console().print(text, markup=False, emoji=False)
