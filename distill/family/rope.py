"""refuse_unknown_rope(): rotary positions of a kind that transformers does not have, found before a load."""

from collections.abc import Mapping
from typing import Any

from distill.errors import RecipeError

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
"""`rope_type` in config.json, as transformers 5.23 has them (modeling_rope_utils.py); tests hold them against it."""


def refuse_unknown_rope(config: Mapping[str, Any], asked_by: str) -> None:
    """Raises RecipeError where a config.json names a kind of rotary positions that its model cannot compute.

    Args:
        config: of one of our families; other architectures may have kinds of their own.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping):
        return
    # one for the whole model, or one for each kind of layer
    for one in (rope, *(value for value in rope.values() if isinstance(value, Mapping))):
        kind = one.get("rope_type", one.get("type", "default"))
        if kind not in KINDS:
            raise RecipeError(
                f"{asked_by}: config.json has rope_type {kind!r} in rope_parameters (or rope_scaling), which "
                f"transformers cannot compute for {config.get('model_type')}. It has {', '.join(KINDS)}."
            )
