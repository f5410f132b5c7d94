"""What a package's licences ask to travel with it: their texts, notices and policies, beside the weights."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from distill._licences import Party, is_ours, verdict
from distill.checkpoint import papers_of
from distill.recipe import Recipe


def add_papers(recipe: Recipe, package: Path) -> list[str]:
    """Puts the papers of a package's licences into its folder; returns what is asked for and was not there.

    Of the model that the student started from, and of teachers whose licence reaches what is trained on their outputs.
    "Notice" says what these licences want it to say. A rehearsal's weights are nobody's, and get none.
    """
    if recipe.rehearse:
        return []
    said = verdict(recipe)
    parties = [*said.student, *(one for one in said.teachers if one.terms and one.terms.binds_students)]
    missing = []
    for party in parties:
        papers = papers_of(*party.files) if party.files else []
        for paper in papers:
            _copy(paper, package, party)
        has_text = any(word in paper.name.lower() for paper in papers for word in ("licen", "copying"))
        if party.terms and not has_text and not is_ours(party.name):
            missing.append(
                f"packages: the {party.terms.title} goes with the weights, and {party} has no file of it to copy: add "
                f"the text of {party.terms.url} before you pass them on."
            )
    _notice([party.terms.notice for party in parties if party.terms and party.terms.notice], package)
    return missing


def _copy(paper: Path, package: Path, party: Party) -> None:
    """Under its own name, or with the model's behind it where another text has that name."""
    # in any case: a package may be copied to a disk that does not tell them apart
    taken = {file.name.lower(): file for file in package.iterdir()}.get(paper.name.lower())
    if taken is None:
        shutil.copyfile(paper, package / paper.name)
    elif taken.read_bytes() != paper.read_bytes():
        shutil.copyfile(paper, package / f"{paper.stem}-{Path(party.name).name}{paper.suffix}")


def _notice(lines: Sequence[str], package: Path) -> None:
    """Adds the lines to the package's notice that do not stand there."""
    found = sorted(file for file in package.iterdir() if file.stem.lower() == "notice")
    before = found[0].read_text("utf-8", "replace") if found else ""
    new = [line for line in dict.fromkeys(lines) if line not in before]
    if new:
        text = "\n\n".join([before.rstrip(), *new]).lstrip()
        (found[0] if found else package / "Notice").write_text(f"{text}\n", "utf-8")
