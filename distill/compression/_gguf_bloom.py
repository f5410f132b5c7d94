"""BLOOM in llama.cpp's terms: the rows of its fused projection sorted by query, key and value instead of by head."""

from collections.abc import Mapping
from typing import Any

import numpy as np

MODEL_TYPES = {"bloom": "bloom"}
LAYERS = "transformer.h."
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
TOP_NAMES = {
    "transformer.word_embeddings": "token_embd",
    "transformer.word_embeddings_layernorm": "token_embd_norm",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}
LEFT_OUT = ()
NEEDED = ("hidden_size", "n_layer", "n_head", "vocab_size")
# ALiBi has no last position; this is what BLOOM was trained with
POSITIONS = 2048


def refuse(config: Mapping[str, Any]) -> str | None:
    """One sentence why llama.cpp would compute something else, or None."""
    if config.get("apply_residual_connection_post_layernorm"):
        return "llama.cpp adds bloom's residual before the norm, and this config.json says after it."
    return None


def add_model(writer: Any, config: Mapping[str, Any]) -> None:
    """The metadata that llama.cpp builds the model from."""
    writer.add_context_length(config.get("seq_length", POSITIONS))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(4 * config["hidden_size"])
    writer.add_head_count(config["n_head"])
    writer.add_head_count_kv(config["n_head"])
    writer.add_layer_norm_eps(config.get("layer_norm_epsilon", 1e-5))


def computed(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of the file that no checkpoint holds: none."""
    return {}


def rearranged(array: np.ndarray, source: str, config: Mapping[str, Any]) -> np.ndarray:
    """Rows of the fused projection: [head, (q, k, v), width] becomes [(q, k, v), head, width]."""
    if ".query_key_value." not in source:
        return array
    by_head = array.reshape(config["n_head"], 3, -1, *array.shape[1:])
    return by_head.swapaxes(0, 1).reshape(array.shape)
