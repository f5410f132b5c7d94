"""Reading a checkpoint's config.json: from the hub for a run, from what we know for a rehearsal; near names help."""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.checkpoint import read_config
from distill.errors import RecipeError
from distill.family.known import FAMILIES, config_of, published
from distill.family.rope import refuse_unknown_rope
from distill.family.text_part import text_part

Read = Callable[[str, str | None, str], dict[str, Any]]
"""(checkpoint, revision, the recipe's key) → config.json of its language model.

Raises RecipeError when there is no such checkpoint."""


def read_stored(model: str, revision: str | None, asked_by: str) -> dict[str, Any]:
    """config.json from the folder or the hub: what is there. Raises RecipeError, near names first."""
    known = published(model)
    if known and not known[1].on_hub and not Path(model).is_dir():
        family, checkpoint = known
        raise RecipeError(
            f"{asked_by}={model}: no such folder, and no hub has the weights of {family.title} {checkpoint.size}: "
            f"{family.where_weights_are}"
        )
    return text_part(_read(read_config, model, revision, asked_by))


def read_known(model: str, revision: str | None, asked_by: str) -> dict[str, Any]:
    """config.json from a folder, else from our facts, and only else from the hub. Raises RecipeError likewise."""
    return _read(config_of, model, revision, asked_by)


def near_names(model: str) -> str | None:
    """The sizes of the family that `model` may have meant, and the ids nearest to it, as a sentence; else None."""
    ids = {name.lower(): (f, p) for f in FAMILIES for p in f.published for name in (p.model, *p.aliases)}
    if "/" not in model:  # its owner was left out
        ids = {name.rpartition("/")[2]: found for name, found in ids.items()}
    nearest = difflib.get_close_matches(model.lower(), ids, n=1, cutoff=0.75)
    if not nearest:
        return None
    family, meant = ids[nearest[0]]
    others = [p.model for p in family.published if p is not meant]
    shown = [meant.model, *difflib.get_close_matches(model, others, n=3, cutoff=0.5)]
    # "13B Chat" is of the size 13B, "3.1 8B Instruct" of 3.1 8B
    found = ((re.search(r"(?:[\d.]+ )?[\d.]+[MB]", p.size), p) for p in family.published)
    sizes = ", ".join(dict.fromkeys(size[0] if size else p.size for size, p in found))
    # the very size that was typed, where no hub has it
    lost = next((p for p in family.published if not p.on_hub and p.size.lower() in model.lower()), None)
    if lost:
        folder = f"recipes take them from the folder {lost.model}: {family.where_weights_are}"
        return f"no hub has the weights of {family.title} {lost.size}; {folder}"
    return f"{family.title} was published in {sizes}; did you mean {', '.join(shown)}?"


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
    near = None if published(model) or Path(model).is_dir() else near_names(model)
    if near is None:
        return _with_known_rope(read(model, revision, asked_by), f"{asked_by}={model}")
    try:
        with _hub_is_silent():
            return _with_known_rope(read(model, revision, asked_by), f"{asked_by}={model}")
    except RecipeError as error:
        # what was meant first: that the hub gave nothing follows from it
        named = f"{asked_by}={model}: "
        rest = str(error).removeprefix(named)
        raise RecipeError(f"{named}{near}\n{rest[:1].upper()}{rest[1:]}") from None


def _with_known_rope(config: dict[str, Any], asked_by: str) -> dict[str, Any]:
    if text_part(config).get("model_type") in {family.model_type for family in FAMILIES}:
        refuse_unknown_rope(text_part(config), asked_by)
    return config


@contextlib.contextmanager
def _hub_is_silent() -> Iterator[None]:
    """Hides the lines that the hub's client logs for each try without a network: they would bury what was meant."""
    from huggingface_hub.utils import logging

    shown = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(shown)
