"""Models and tokenizers that several tests make."""

import json
from pathlib import Path
from typing import Any


def random_model(config: dict[str, Any], seed: int = 0) -> Any:
    """The model that transformers makes of this config.json, weights drawn from `seed`; for evaluation."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    values = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values)).eval()


def gpt2_tokenizer(shared_data: Path) -> Any:
    """GPT-2's BPE over bytes, of the kind of Qwen's."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    folder = shared_data / "tokenizer_gpt2"
    merges = [tuple(line.split()) for line in (folder / "vocab.bpe").read_text("utf-8").splitlines()[1:]]
    bpe = ByteLevelBPETokenizer(json.loads((folder / "encoder.json").read_text("utf-8")), merges)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def byte_tokenizer(*special: str) -> Any:
    """`tokenizers.Tokenizer` of single bytes, one merge, and these special tokens behind them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, "zz"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("z", "z")]))  # llama.cpp wants one merge at least
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special])
    return tokenizer
