"""Licence papers in a checkpoint folder: what whoever passes a model on must pass on with it. Standard library only."""

import fnmatch
from pathlib import Path

_PATTERNS = ("licen[cs]e*", "model_license*", "notice*", "copying*", "use_policy*", "acceptable_use*")
"""In lower case; repositories write them in any."""
HUB_PATTERNS = [form for p in _PATTERNS for form in (p, p.capitalize(), p.upper())]
"""For the hub's client, which tells cases apart."""


def is_paper(name: str) -> bool:
    """Whether a file of this name is a licence, a notice or a policy, and no part of the model."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _PATTERNS)


def papers_in(folder: Path) -> list[Path]:
    """The licence papers of a checkpoint folder, sorted by name."""
    return sorted(file for file in folder.iterdir() if file.is_file() and is_paper(file.name))
