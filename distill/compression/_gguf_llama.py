"""Llama-like models (Llama, Mistral, Qwen 2 and 3) in llama.cpp's terms.

Names and the order of rows follow llama.cpp: its `llama` architecture rotates neighbouring pairs of a head where
transformers rotates the two halves, so the rows of the query and key projections change places. Its `qwen2` and `qwen3`
rotate halves and take the rows as they are.

Source: RoPE layouts as in llama.cpp's LLAMA_ROPE_TYPE_NORM and _NEOX.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

MODEL_TYPES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model_type → llama.cpp's architecture."""
LAYERS = "model.layers."
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# checkpoints of 2023 carry it; it follows from the config
LEFT_OUT = ("rotary_emb.inv_freq",)
NEEDED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    *("max_position_embeddings", "rms_norm_eps"),
)


def refuse(config: Mapping[str, Any]) -> str | None:
    """One sentence why llama.cpp would compute something else, or None."""
    if head_size(config) % 2:
        return f"head_dim {head_size(config)} is odd, and rotary positions need pairs."
    if config.get("hidden_act", "silu") != "silu":
        return f"llama.cpp computes silu for {config['model_type']}, and not hidden_act={config['hidden_act']}."
    rope = rope_parameters(config)
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        return f"the GGUF export of rope_type={rope['rope_type']} is not written yet; default, linear and llama3 are."
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"partial_rotary_factor={rope['partial_rotary_factor']} is not written yet; needed: 1."
    window = config.get("sliding_window")
    if config["model_type"] != "mistral" and not config.get("use_sliding_window"):
        window = None
    if window and window < config["max_position_embeddings"]:
        return (
            f"llama.cpp has no sliding window here: sliding_window={window} is below "
            f"max_position_embeddings={config['max_position_embeddings']}; lower the latter to {window}."
        )
    return None


def add_model(writer: Any, config: Mapping[str, Any]) -> None:
    """The metadata that llama.cpp builds the model from."""
    from gguf import RopeScalingType

    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_dimension_count(head_size(config))
    rope = rope_parameters(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def computed(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of the file that no checkpoint holds."""
    return {"rope_freqs.weight": rope_factors(config)} if rope_parameters(config)["rope_type"] == "llama3" else {}


def rearranged(array: np.ndarray, source: str, config: Mapping[str, Any]) -> np.ndarray:
    """Rows of the query and key projections in the order of llama.cpp's `llama`; everything else as it is."""
    is_query, is_key = ".self_attn.q_proj." in source, ".self_attn.k_proj." in source
    if MODEL_TYPES[config["model_type"]] != "llama" or not (is_query or is_key):
        return array
    # One head is [first half, second half] in transformers and [pair, pair, ...] in llama.cpp.
    halves = array.reshape(-1, 2, head_size(config) // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE settings in one dict, from transformers 5's `rope_parameters` or the older `rope_theta` + `rope_scaling`."""
    old = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    found = {**old, **(config.get("rope_parameters") or {})}
    return {**found, "rope_type": found.get("rope_type", found.get("type", "default"))}


def head_size(config: Mapping[str, Any]) -> int:
    """Width of one attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_factors(config: Mapping[str, Any]) -> np.ndarray:
    """Llama 3's RoPE scaling as divisors of each frequency, float32 `[head_dim / 2]`.

    High frequencies stay (1), low ones are stretched by `factor`, those between are blended.
    Source: Llama 3.1's reference code, as described in transformers' `rope_type: llama3`.
    """
    rope = rope_parameters(config)
    frequency = rope["rope_theta"] ** (-np.arange(0, head_size(config), 2, dtype=np.float64) / head_size(config))
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / (kept + (1.0 - kept) / factor)).astype(np.float32)
