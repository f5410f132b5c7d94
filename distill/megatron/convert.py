"""convert(): a Megatron-LM GPT-2 checkpoint → a Hugging Face GPT-2 folder, in the dtype it was stored in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.compression._companions import copy_companions
from distill.errors import RecipeError, first_line
from distill.megatron.layout import rank_files
from distill.megatron.merging import merge, num_layers, place_of
from distill.megatron.reading import Rank, read_rank
from distill.megatron.shape import config_of
from distill.megatron.writing import SHARD_BYTES, whole_folder, write_shards

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Converted:
    """What was found and written."""

    config: Mapping[str, Any]
    version: float
    num_ranks: int
    num_stages: int
    weight_bytes: int
    """Of the tensors, without the files' headers."""
    tokenizer_files: list[str]


def convert(
    checkpoint: Path,
    target: Path,
    *,
    tokenizer: Path | None = None,
    heads: int | None = None,
    num_tokens: int | None = None,
    iteration: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Converted:
    """Writes the folder `target`: safetensors, config.json, and the tokenizer's files where one is given.

    Args:
        checkpoint: what Megatron saved to, one iteration of it, or a single .pt file.
        tokenizer: a folder that transformers loads a tokenizer from; its size is where the padded vocabulary is cut.
        heads: number of attention heads; the oldest files do not say it.
        num_tokens: where the vocabulary is cut without a tokenizer; GPT-2's 50257 by default.

    Raises:
        RecipeError: `target` exists, or the checkpoint is incomplete, damaged, of an unknown version, or no GPT-2.
    """
    with whole_folder(target) as scratch:
        special = {}
        if tokenizer is not None:
            num_tokens, special = _tokenizer_facts(tokenizer, num_tokens)
        stages = [[read_rank(file) for file in files] for files in rank_files(checkpoint, iteration)]
        config = {**config_of(stages, heads=heads, num_tokens=num_tokens), **special}
        shapes = _write_config(config, stages[0][0], scratch)
        size = write_shards(_checked(_weights(stages, config), shapes, checkpoint), scratch, shard_bytes)
        copied = copy_companions(tokenizer, scratch) if tokenizer else []
    return Converted(config, stages[0][0].version, len(stages[0]), len(stages), size, copied)


def _weights(stages: Sequence[Sequence[Rank]], config: Mapping[str, Any]) -> "Iterator[tuple[str, Tensor]]":
    """Every weight under its name in transformers, merged when it is asked for."""
    first_layer = 0
    for ranks in stages:
        for name in ranks[0].tensors:
            place = place_of(name, first_layer)
            if place is None:
                raise RecipeError(f"{ranks[0].file} holds {name}, which GPT-2 does not have: it cannot be converted.")
            parts = [rank.tensors[name] for rank in ranks]
            whole = merge(parts, name, place[1], version=ranks[0].version, heads=config["n_head"])
            yield place[0], whole[: config["vocab_size"]].contiguous() if place[1] == "vocabulary" else whole
        first_layer += num_layers(list(ranks[0].tensors))


def _checked(
    weights: "Iterator[tuple[str, Tensor]]", shapes: Mapping[str, tuple[int, ...]], checkpoint: Path
) -> "Iterator[tuple[str, Tensor]]":
    """The same weights; raises RecipeError unless they are exactly those of `shapes`."""
    missing = dict(shapes)
    for name, tensor in weights:
        needed = missing.pop(name, None)
        if needed != tuple(tensor.shape):
            raise RecipeError(f"{checkpoint}: {name} came out as {tuple(tensor.shape)}; needed: {needed}.")
        yield name, tensor
    if missing:
        raise RecipeError(
            f"{checkpoint} lacks {', '.join(sorted(missing)[:3])} (transformers' names), {len(missing)} in all. "
            "Are all of its pipeline stages there?"
        )


def _write_config(values: Mapping[str, Any], first: Rank, folder: Path) -> dict[str, tuple[int, ...]]:
    """Writes config.json; returns name → shape of every weight that such a model stores."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    dtype = str(first.tensors["word_embeddings.weight"].dtype).removeprefix("torch.")
    config = GPT2Config(**values, architectures=["GPT2LMHeadModel"], dtype=dtype)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # a tied head once


def _tokenizer_facts(folder: Path, num_tokens: int | None) -> tuple[int, dict[str, Any]]:
    """(entries, ids that belong into config.json)"""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--tokenizer {folder}: transformers loads no tokenizer from it ({first_line(error)}). "
            "Give a folder with tokenizer.json, or vocab.json and merges.txt."
        ) from None
    if num_tokens not in {None, len(tokenizer)}:
        raise RecipeError(
            f"--vocab-size {num_tokens}, but {folder} has {len(tokenizer)} tokens. Leave one of them out."
        )
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return len(tokenizer), ids
