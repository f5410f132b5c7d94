"""The tensor-parallel parts of one weight → that weight, named and laid out as transformers' GPT-2 has it.

Column-parallel layers (qkv, h_to_4h) and the embedding are cut by rows, row-parallel ones (dense, 4h_to_h) by columns;
norms, positions and the biases of row-parallel layers are on every rank. transformers' Conv1D is transposed.

The rows of one rank's query_key_value, for its own heads, are ordered
    version 0          [3, heads, head size]
    version 1.0        [heads, head size, 3]
    version 2.0, 3.0   [heads, 3, head size]
and transformers wants [3, all heads, head size].
Source: `fix_query_key_value_ordering` and `_transpose_first_dim` in megatron/checkpointing.py of NVIDIA/Megatron-LM;
the classes ColumnParallelLinear, RowParallelLinear and VocabParallelEmbedding there say what is cut and how.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from distill.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

Cut = Literal["qkv", "column", "row", "vocabulary", "none"]

# Megatron's module, under all its names → (transformers' module, how it is cut)
_LAYER: dict[str, tuple[str, Cut]] = {
    "input_layernorm": ("ln_1", "none"),
    "input_norm": ("ln_1", "none"),
    "attention.query_key_value": ("attn.c_attn", "qkv"),
    "self_attention.query_key_value": ("attn.c_attn", "qkv"),
    "attention.dense": ("attn.c_proj", "row"),
    "self_attention.dense": ("attn.c_proj", "row"),
    "post_attention_layernorm": ("ln_2", "none"),
    "post_attention_norm": ("ln_2", "none"),
    "mlp.dense_h_to_4h": ("mlp.c_fc", "column"),
    "mlp.dense_4h_to_h": ("mlp.c_proj", "row"),
}
_TOP: dict[str, tuple[str, Cut]] = {
    "word_embeddings": ("wte", "vocabulary"),
    "position_embeddings": ("wpe", "none"),
    "final_layernorm": ("ln_f", "none"),
    "final_norm": ("ln_f", "none"),
}
_LAYER_NAME = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")


def place_of(name: str, first_layer: int) -> tuple[str, Cut] | None:
    """(name in transformers, how it is cut) of Megatron's `name`; None for what GPT-2 does not have.

    Args:
        first_layer: the number of the pipeline stage's first layer; each stage counts its own from 0.
    """
    match = _LAYER_NAME.fullmatch(name)
    if match and match[2] in _LAYER:
        module, cut = _LAYER[match[2]]
        return f"transformer.h.{first_layer + int(match[1])}.{module}.{match[3]}", cut
    module, _, kind = name.rpartition(".")
    if module in _TOP and kind in {"weight", "bias"}:
        return f"transformer.{_TOP[module][0]}.{kind}", _TOP[module][1]
    return None


def num_layers(names: Sequence[str]) -> int:
    """How many layers a stage holds."""
    return 1 + max((int(match[1]) for match in map(_LAYER_NAME.fullmatch, names) if match), default=-1)


def merge(parts: "Sequence[Tensor]", name: str, cut: Cut, *, version: float, heads: int) -> "Tensor":
    """The whole weight or bias, contiguous, in the parts' dtype, as transformers' GPT-2 stores it.

    Args:
        parts: of all ranks, in their order.
        heads: of the whole model.

    Raises:
        RecipeError: what every rank should hold alike differs; the message names `name` and the ranks.
    """
    import torch

    is_bias = parts[0].ndim == 1
    if cut == "none" or (cut == "row" and is_bias):
        differing = [rank for rank, part in enumerate(parts) if not torch.equal(part, parts[0])]
        if differing:
            raise RecipeError(
                f"{name} is the same on every rank, but on rank {', '.join(map(str, differing))} it differs from rank "
                "0: the ranks are not of one checkpoint. Copy them anew."
            )
        return parts[0].contiguous()
    if cut == "vocabulary":
        return torch.cat(list(parts), dim=0)
    if cut == "qkv":
        whole = torch.cat([_ordered(part, version, heads // len(parts)) for part in parts], dim=1).flatten(0, 2)
    else:
        whole = torch.cat(list(parts), dim=1 if cut == "row" else 0)
    return whole if is_bias else whole.T.contiguous()


def _ordered(part: "Tensor", version: float, heads: int) -> "Tensor":
    """One rank's qkv rows as `[3, heads, head size, …]`."""
    size, rest = part.shape[0] // (3 * heads), part.shape[1:]
    if version == 0:
        return part.reshape(3, heads, size, *rest)
    if version == 1.0:
        return part.reshape(heads, size, 3, *rest).movedim(2, 0)
    return part.reshape(heads, 3, size, *rest).movedim(1, 0)
