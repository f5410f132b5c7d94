"""GPT-2 in llama.cpp's terms: the same function, its matrices turned from Conv1D's [in, out] to [out, in]."""

from collections.abc import Mapping
from typing import Any

import numpy as np

MODEL_TYPES = {"gpt2": "gpt2"}
LAYERS = "transformer.h."
LAYER_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
TOP_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}
# causal masks, which checkpoints of 2019 carry
LEFT_OUT = (".attn.bias", ".attn.masked_bias")
NEEDED = ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size")
# other names of the approximation by tanh, which is what llama.cpp computes
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def refuse(config: Mapping[str, Any]) -> str | None:
    """One sentence why llama.cpp would compute something else, or None."""
    activation = config.get("activation_function", "gelu_new")
    if activation not in TANH_GELU:
        return f"llama.cpp computes gelu_new for gpt2, and not activation_function={activation}."
    if config.get("scale_attn_by_inverse_layer_idx") or not config.get("scale_attn_weights", True):
        return "llama.cpp scales gpt2's attention by the root of the head's width, and this config.json says otherwise."
    return None


def add_model(writer: Any, config: Mapping[str, Any]) -> None:
    """The metadata that llama.cpp builds the model from."""
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config.get("layer_norm_epsilon", 1e-5))


def computed(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of the file that no checkpoint holds: none."""
    return {}


def rearranged(array: np.ndarray, source: str, config: Mapping[str, Any]) -> np.ndarray:
    """Matrices of the blocks as `[out, in]`; everything else as it is."""
    return array.T if array.ndim == 2 and source.startswith(LAYERS) else array
