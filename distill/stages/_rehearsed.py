"""What cards and report say of a rehearsal: nothing in its folder is what the recipe names."""

from collections.abc import Mapping
from typing import Any

BANNER = "Rehearsal: tiny random models of the same architectures; no figure here means anything."


def banner(recipe: Mapping[str, Any]) -> str | None:
    """The sentence that stands above everything else in the folder of a rehearsal; None for a real run."""
    return BANNER if recipe.get("rehearse") is True else None
