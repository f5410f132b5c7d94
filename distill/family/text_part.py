"""text_part(): the language model in a checkpoint that reads images too, as a config.json of its own.

transformers' AutoModelForCausalLM builds all of such a checkpoint, with a vision tower that no text ever reaches, and
its config.json has no `vocab_size`. We read, train and save its language model alone: it computes the same logits, and
what is saved loads as any text model does.
Source: transformers 5.23, `Gemma3ForConditionalGeneration` and `Gemma3ForCausalLM`; names of weights as in the index of
google/gemma-3-27b-it (model.safetensors.index.json), and as transformers 4.52 to 4.57 wrote them.
"""

from collections.abc import Mapping
from typing import Any

TEXT_TYPE = {"gemma3": "gemma3_text"}
"""`model_type` of a checkpoint that reads images → that of its language model."""

KEY_MAPPING = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}
"""Names of weights on disk → in the language model, as transformers' `key_mapping`; the first are the hub's."""
NOT_TEXT = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
"""How the names begin of weights that are left on the disk."""
_OF_WHOLE = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "dtype", "torch_dtype")
"""Keys that transformers reads from the whole checkpoint's config.json, where it has them."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
    }
}
"""transformers' defaults that published files rely on: Gemma's own name the sizes alone that differ from these."""


def reads_more_than_text(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a checkpoint whose language model is only a part of it."""
    return config.get("model_type") in TEXT_TYPE


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the language model, with all that decides its shape; of a text model, `config` itself."""
    if not reads_more_than_text(config):
        return dict(config)
    model_type = TEXT_TYPE[config["model_type"]]
    whole = {name: config[name] for name in _OF_WHOLE if config.get(name) is not None}
    # a checkpoint that somebody quantised says so for all of its parts
    if config.get("quantization_config"):
        whole["quantization_config"] = config["quantization_config"]
    return {**DEFAULTS[model_type], **(config.get("text_config") or {}), **whole, "model_type": model_type}


def adapter_key_mapping(model_type: str) -> dict[str, str] | None:
    """PEFT's `key_mapping` for an adapter of a base of this type: it may name the layers of the whole checkpoint."""
    return KEY_MAPPING if model_type in TEXT_TYPE.values() else None
