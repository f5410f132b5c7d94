"""Which type each tensor of a GGUF gets: the mixtures Q8_0 and Q4_K_M, by the names and rules of llama.cpp.

Norms and biases stay in float32, and so do learned positions: they are few, and are added to everything.

Source: llama.cpp, src/llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type_impl, tensor_type_fallback),
as of October 2026.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

BLOCK = 32
"""Numbers that share a scale in the types whose rows may be short: Q8_0 and Q5_0. A narrower row stays in float16."""
SUPER_BLOCK = 256
"""Numbers that share a scale of scales in the types whose names end with K."""
SHORT_ROWS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes where a row is no multiple of `SUPER_BLOCK`: the next type of more bits."""


@dataclass(frozen=True)
class Outline:
    """What a mixture asks about the whole model."""

    num_layers: int
    is_tied: bool
    """The output is the embedding's matrix."""
    shares_keys: bool
    """Several query heads look at the same keys and values."""

    @classmethod
    def of(cls, names: Collection[str], config: Mapping[str, Any]) -> "Outline":
        """From the tensors' GGUF names and the student's config.json."""
        heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
        return cls(
            num_layers=len({name.split(".")[1] for name in names if name.startswith("blk.")}),
            is_tied="output.weight" not in names,
            shares_keys=bool(heads and shared and shared < heads),
        )


@dataclass(frozen=True)
class Mixture:
    """A way to choose types. `wanted`: (name, outline) → the type of a matrix whose rows are long enough."""

    file_type: str
    """In `gguf.LlamaFileType`: what llama.cpp shows."""
    wanted: Callable[[str, Outline], str]

    def type_of(self, name: str, shape: tuple[int, ...], outline: Outline) -> str:
        """The type in the file, as `gguf.GGMLQuantizationType` names it. `shape` is `[out, in]` as in torch."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        if not is_matrix(name, shape):
            return "F32"
        wanted = self.wanted(name, outline)
        choices = (wanted, SHORT_ROWS.get(wanted, "F16"), "F16")
        return next(kind for kind in choices if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] == 0)


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one of those that are quantised at all."""
    return len(shape) > 1 and name != "position_embd.weight"


def has_more_bits(layer: int, num_layers: int) -> bool:
    """Whether a layer's values and outputs deserve Q6_K: the first and last eighth, and every third between."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _q4_k_m(name: str, outline: Outline) -> str:
    if name == "output.weight" or (name == "token_embd.weight" and outline.is_tied):
        return "Q6_K"
    if not name.startswith("blk."):
        return "Q4_K"
    _, layer, part, _ = name.split(".")
    # a fused projection holds the values, and is treated like them
    is_value = part in ("attn_v", "attn_qkv")
    if (is_value or part == "ffn_down") and has_more_bits(int(layer), outline.num_layers):
        return "Q6_K"
    # Llama 2 and 3 and Qwen 2 of 70 billion: eight heads share these values, so that one bit more costs next to nothing
    return "Q5_K" if is_value and outline.num_layers == 80 and outline.shares_keys else "Q4_K"


Q8_0 = Mixture("MOSTLY_Q8_0", lambda name, outline: "Q8_0")
Q4_K_M = Mixture("MOSTLY_Q4_K_M", _q4_k_m)
