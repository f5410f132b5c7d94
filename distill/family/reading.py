"""Reading a checkpoint's config.json: from the hub for a run, from what we know for a rehearsal; near names help."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill.checkpoint import read_config
from distill.errors import RecipeError
from distill.family.known import FAMILIES, config_of, published

Read = Callable[[str, str | None, str], dict[str, Any]]
"""(checkpoint, revision, the recipe's key) → config.json. Raises RecipeError when there is no such checkpoint."""


def read_stored(model: str, revision: str | None, asked_by: str) -> dict[str, Any]:
    """config.json from the folder or the hub: what is there. Raises RecipeError, with near names."""
    known = published(model)
    if known and not known[1].on_hub and not Path(model).is_dir():
        family, checkpoint = known
        raise RecipeError(
            f"{asked_by}={model}: no such folder, and no hub has the weights of {family.title} {checkpoint.size}: "
            f"{family.where_weights_are}"
        )
    return _read(read_config, model, revision, asked_by)


def read_known(model: str, revision: str | None, asked_by: str) -> dict[str, Any]:
    """config.json from a folder, else from our facts, and only else from the hub. Raises RecipeError likewise."""
    return _read(config_of, model, revision, asked_by)


def near_names(model: str) -> str | None:
    """The published checkpoints that `model` may have meant: those of the family whose ids are nearest; else None."""
    ids = {p.model.lower(): (family, p) for family in FAMILIES for p in family.published}
    nearest = difflib.get_close_matches(model.lower(), ids, n=1, cutoff=0.75)
    if not nearest:
        return None
    family, _ = ids[nearest[0]]
    names = [p.model for p in family.published]
    shown = difflib.get_close_matches(model, names, n=4, cutoff=0.5)
    sizes = ", ".join(dict.fromkeys(p.size for p in family.published))
    return f"{family.title} was published in {sizes}. Near names: {', '.join(shown)}."


def refuse_unknown_architecture(config: Mapping[str, Any], asked_by: str) -> None:
    """Raises RecipeError when transformers has no causal language model of this `model_type`; says what works."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = config.get("model_type")
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    known = ", ".join(dict.fromkeys(family.model_type for family in FAMILIES))
    raise RecipeError(
        f"{asked_by}: transformers has no causal language model of the architecture {model_type!r} (model_type in "
        f"config.json).\nKnown in full here: {known}.\n"
        "Any other causal language model of transformers works without facts of its own: teaching, training (LoRA "
        "finds its linear layers), bf16 and the bnb compressions; GGUF says what it cannot take."
    )


def _read(read: Read, model: str, revision: str | None, asked_by: str) -> dict[str, Any]:
    try:
        return read(model, revision, asked_by)
    except RecipeError as error:
        near = near_names(model)
        raise RecipeError(f"{error}\n{near}" if near else str(error)) from None
