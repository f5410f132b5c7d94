"""What a recipe's GGUF packages say of themselves: name, licence, what the student started from, and the data."""

import re
from pathlib import Path
from typing import Any

from distill._licences import verdict
from distill.compression._about import About
from distill.family.licence import in_card
from distill.option import is_meant_as_path
from distill.recipe import Recipe


def about(recipe: Recipe) -> About:
    """The recipe's name, and what model hubs ask beside it. A rehearsal's weights have no licence and no origin."""
    if recipe.rehearse:
        return About(name=f"rehearsal of {recipe.name}")
    said = verdict(recipe)
    return About(
        name=said.named(recipe.name),
        licence=in_card(said.packages or ()),
        base_model=hub_id(getattr(recipe.student, "model", None)),
        dataset=hub_id(getattr(recipe.data, "path", None)),
    )


def hub_id(name: Any) -> str | None:
    """`owner/name` when that is what `name` is and not a file or a folder."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return None
    return None if is_meant_as_path(name) or Path(name).exists() else name


def shown(name: str) -> str:
    """`name` as a card that leaves this machine says it: a path from where the run was started, or its last part."""
    path = Path(name)
    if not path.is_absolute():
        return name
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
