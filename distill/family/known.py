"""Which family a checkpoint is of, and what is known of it, without a network."""

from collections.abc import Mapping
from typing import Any

from distill.checkpoint import read_config
from distill.family import (
    bloom,
    code_llama,
    gemma3,
    gpt2,
    gpt_neo,
    llama,
    llama2,
    llama3,
    megatron_gpt2,
    mistral,
    opt,
    qwen2_5,
    qwen3,
)
from distill.family.facts import Family, Published
from distill.family.text_part import text_part

FAMILIES: tuple[Family, ...] = (
    gpt2.FAMILY,
    gpt_neo.FAMILY,
    opt.FAMILY,
    bloom.FAMILY,
    megatron_gpt2.FAMILY,
    llama2.FAMILY,
    llama.FAMILY,
    code_llama.FAMILY,
    llama3.FAMILY,
    qwen2_5.FAMILY,
    qwen3.FAMILY,
    mistral.FAMILY,
    gemma3.FAMILY,
)
"""In the order in which a `model_type` that several share is decided."""

_BY_ID = {name.lower(): (f, p) for f in FAMILIES for p in f.published for name in (p.model, *p.aliases)}


def published(model: str) -> tuple[Family, Published] | None:
    """Family and facts of the checkpoint that is published as `model`: its hub id or an older one, in any case."""
    return _BY_ID.get(model.strip("/").lower())


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config.json, by its `model_type`; None for an architecture that is not among ours.

    Of several that share it, the first with a checkpoint of the same vocabulary size: Llama 3 is no Llama 2.
    """
    config = text_part(config)
    sharing = [family for family in FAMILIES if family.model_type == config.get("model_type")]
    size = config.get("vocab_size")
    same = (f for f in sharing if any(p.config.get("vocab_size") == size for p in f.published))
    return next(same, sharing[0] if sharing else None)


def config_of(model: str, revision: str | None, asked_by: str) -> dict[str, Any]:
    """config.json of a checkpoint's language model: from what we know of it, from its folder, else from the hub.

    Raises:
        RecipeError: there is no such checkpoint; the message names `asked_by`, the key that asked for it.
    """
    known = published(model)
    if known:
        family, checkpoint = known
        return {"model_type": family.model_type, **checkpoint.config}
    return text_part(read_config(model, revision, asked_by))
