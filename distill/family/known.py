"""Which family a checkpoint is of, and what is known of it, without a network."""

from collections.abc import Mapping
from typing import Any

from distill.checkpoint import read_config
from distill.family import gpt2
from distill.family.facts import Family, Published

FAMILIES: tuple[Family, ...] = (gpt2.FAMILY,)
"""In the order in which a `model_type` that several share is decided."""


def published(model: str) -> tuple[Family, Published] | None:
    """Family and facts of the checkpoint that is published as `model` (a hub id, in any case of letters)."""
    wanted = model.strip("/").lower()
    return next(((f, p) for f in FAMILIES for p in f.published if p.model.lower() == wanted), None)


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config.json, by its `model_type`; None for an architecture that is not among ours."""
    return next((family for family in FAMILIES if family.model_type == config.get("model_type")), None)


def config_of(model: str, revision: str | None, asked_by: str) -> dict[str, Any]:
    """config.json of a checkpoint: from its folder, from what we know of it, else from the hub.

    Raises:
        RecipeError: there is no such checkpoint; the message names `asked_by`, the key that asked for it.
    """
    known = published(model)
    if known:
        family, checkpoint = known
        return {"model_type": family.model_type, **checkpoint.config}
    return read_config(model, revision, asked_by)
