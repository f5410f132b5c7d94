"""What a Megatron-LM checkpoint says of its model → the values of a GPT-2 config.json, or why there is none."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.errors import RecipeError
from distill.family.megatron_gpt2 import FAMILY
from distill.megatron.merging import num_layers
from distill.megatron.reading import Rank

GPT2_TOKENS = 50257
_MULTIPLE = 128
"""Megatron pads the vocabulary to a multiple of this times the tensor-parallel size, unless told otherwise."""

# Switches that GPT-2 in transformers does not have → the value that it needs
_NEEDED: dict[str, tuple[Any, ...]] = {
    "apply_residual_connection_post_layernorm": (False, None),
    "untie_embeddings_and_output_weights": (False, None),
    "apply_layernorm_1p": (False, None),
    "swiglu": (False, None),
    "squared_relu": (False, None),
    "glu_activation": (None,),
    "group_query_attention": (False, None),
    "num_experts": (None, 1, [1]),
    "normalization": ("LayerNorm",),
    "add_bias_linear": (True,),
}


def config_of(stages: Sequence[Sequence[Rank]], *, heads: int | None, num_tokens: int | None) -> dict[str, Any]:
    """Values of GPT2Config.

    Args:
        stages: ranks[stage][rank].
        heads: the number of attention heads, for files that do not say it.
        num_tokens: entries of the tokenizer; None: GPT-2's.

    Raises:
        RecipeError: a switch that GPT-2 lacks, a rank is missing, heads are not known, the vocabulary does not fit.
    """
    first, arguments = stages[0][0], stages[0][0].arguments
    for key, accepted in _NEEDED.items():
        if key in arguments and arguments[key] not in accepted:
            raise RecipeError(
                f"{first.file} was trained with {key}={arguments[key]}, which GPT-2 in transformers does not have; "
                f"needed: {accepted[0]}. It cannot be converted to GPT-2."
            )
    positions, width = _tensor(first, "position_embeddings.weight").shape
    depth = sum(num_layers(list(ranks[0].tensors)) for ranks in stages)
    _check_ranks(stages, width)
    inner = _tensor(first, "layers.0.mlp.dense_h_to_4h.weight").shape[0] * len(stages[0])
    values = {
        "n_embd": width,
        "n_layer": depth,
        "n_head": _heads(first, arguments, heads, width, depth),
        "n_positions": positions,
        "n_inner": None if inner == 4 * width else inner,
        "vocab_size": _vocabulary(stages[0], arguments, num_tokens),
        "activation_function": _activation(arguments),
        "layer_norm_epsilon": float(arguments.get("layernorm_epsilon", 1e-5)),
        "tie_word_embeddings": True,
    }
    if values["n_head"] % len(stages[0]) or width % values["n_head"]:
        raise RecipeError(
            f"{values['n_head']} heads do not divide into {len(stages[0])} ranks of a width of {width}. Give the right "
            "number with --heads."
        )
    return values


def _check_ranks(stages: Sequence[Sequence[Rank]], width: int) -> None:
    """Raises RecipeError when a rank is missing at the end, or the ranks are not of one checkpoint."""
    first, size = stages[0][0], len(stages[0])
    # attention's output layer takes a rank's own part of the width
    inputs = next((t.shape[1] for name, t in first.tensors.items() if name.endswith("attention.dense.weight")), width)
    needed = width // inputs
    if needed != size:
        missing = ", ".join(f"mp_rank_{rank:02d}" for rank in range(size, needed)) or "none"
        raise RecipeError(
            f"{first.file.parent.parent} holds {size} tensor-parallel ranks, but its weights were cut into {needed}: "
            f"{missing} {'is' if needed == size + 1 else 'are'} missing. Copy what is missing here."
        )
    stored = first.arguments.get("pipeline_model_parallel_size", len(stages))
    if stored != len(stages):
        raise RecipeError(
            f"{first.file.parent.parent} holds {len(stages)} pipeline stages of {stored}; every stage holds layers of "
            "its own. Copy the missing ones here."
        )
    for ranks in stages:
        for rank in ranks:
            if rank.version != first.version:
                raise RecipeError(
                    f"{rank.file} has checkpoint_version {rank.version}, {first.file} {first.version}: the ranks are "
                    "not of one checkpoint. Copy them anew."
                )
            other = rank.tensors.keys() ^ ranks[0].tensors.keys()
            shapes = [n for n in rank.tensors if not other and rank.tensors[n].shape != ranks[0].tensors[n].shape]
            if other or shapes:
                raise RecipeError(
                    f"{rank.file} and {ranks[0].file} differ in {', '.join(sorted([*other, *shapes])[:3])}: the ranks "
                    "are not of one checkpoint. Copy them anew."
                )


def _heads(first: Rank, arguments: Mapping[str, Any], given: int | None, width: int, depth: int) -> int:
    stored = arguments.get("num_attention_heads")
    if stored and given and stored != given:
        raise RecipeError(f"--heads {given}, but {first.file} says {stored}. Leave --heads out.")
    channels = arguments.get("kv_channels")
    if stored and channels and channels * stored != width:
        raise RecipeError(f"{first.file}: {stored} heads of {channels} are not {width} wide, as GPT-2's must be.")
    known = [
        c.config["n_head"] for c in FAMILY.published if (c.config["n_embd"], c.config["n_layer"]) == (width, depth)
    ]
    found = stored or given or (known[0] if known else None)
    if not found:
        raise RecipeError(
            f"{first.file} does not say how many attention heads it has (no args, {depth} layers of {width}). "
            "Give --heads N."
        )
    return int(found)


def _vocabulary(ranks: Sequence[Rank], arguments: Mapping[str, Any], num_tokens: int | None) -> int:
    rows = sum(_tensor(rank, "word_embeddings.weight").shape[0] for rank in ranks)
    wanted = num_tokens or GPT2_TOKENS
    multiple = int(arguments.get("make_vocab_size_divisible_by", _MULTIPLE)) * len(ranks)
    if rows != wanted and not wanted < rows < wanted + multiple:
        raise RecipeError(
            f"The embedding has {rows} rows: that is no vocabulary of {wanted} tokens, padded to a multiple of "
            f"{multiple}. Give the folder of its tokenizer with --tokenizer, or the number with --vocab-size."
        )
    return wanted


def _activation(arguments: Mapping[str, Any]) -> str:
    """gelu_new is GELU's tanh form: OpenAI's, Megatron's fused kernel's, and that of its first versions."""
    exact = "openai_gelu" in arguments and not (arguments["openai_gelu"] or arguments.get("bias_gelu_fusion"))
    return "gelu" if exact else "gelu_new"


def _tensor(rank: Rank, name: str) -> Any:
    if name not in rank.tensors:
        raise RecipeError(
            f"{rank.file} has no {name}; found {', '.join(list(rank.tensors)[:3]) or 'no tensors'} … "
            "Needed: a GPT-2 of Megatron-LM with learned positions, and all of its pipeline stages."
        )
    return rank.tensors[name]
