"""Random students with real tokenizers that llama.cpp can express, and what transformers says with them."""

import random
from pathlib import Path
from typing import Any

import numpy as np

SPECIALS = ["<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = """the customer's card wasn't accepted, so I'll ask again THEY'RE 2024 12345 3.14 €99,90 naïve café Straße
Ελληνικά привет мир 你好世界 こんにちは 한국어 שלום नमस्ते 🙂👩‍👩‍👧 foo_bar() x=1; {a:[b]} https://example.org/?q=1&r=2
é ﬁ ½ ² -- ... !!! don’t I'M we'd"""
WORDS = [*TEXT.split(), "\u00a0", "\u200b", "e\u0301", "\t"]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "eos_token_id": 2}
BLOOM = {"model_type": "bloom", "hidden_size": 96, "n_layer": 2, "n_head": 6, "eos_token_id": 2}


def strings(number: int, seed: int = 0, specials: bool = True) -> list[str]:
    """Texts with words of many scripts, digits, runs of spaces and newlines, leading spaces and special tokens."""
    generator = random.Random(seed)
    joints = [" ", " ", " ", "", "  ", "\n", "\n\n", "\r\n", "   ", "\t", " \n ", *(SPECIALS if specials else [])]
    return [
        generator.choice(["", "", " ", "\n"])
        + "".join(generator.choice(WORDS) + generator.choice(joints) for _ in range(generator.randint(1, 12)))
        for _ in range(number)
    ]


def byte_level(regex: str | None) -> Any:
    """A byte-level BPE of 400 tokens, trained here, with the split rule `regex` (None: ByteLevel's own)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    split = [] if regex is None else [pre_tokenizers.Split(Regex(regex), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, last]) if split else last
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(strings(300, seed=1, specials=False), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path, chat_template: str | None = None) -> Any:
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)
    return wrapped


def save_model(folder: Path, dtype: str = "float32", **changes: Any) -> Any:
    """A random causal model whose predictions are far from uniform, so that a wrong layout cannot hide."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**LLAMA, "head_dim": 32, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 2, **changes}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_norm = weight.dim() == 1 and ("norm" in name or ".ln_" in name) and name.endswith("weight")
            weight.normal_(1.0 if is_norm else 0.0, 0.2 if weight.dim() == 1 else 2.0 * weight.shape[-1] ** -0.5)
        model.get_input_embeddings().weight.mul_(0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return model.float()


def expected_logprobs(model: Any, rows: list[list[int]], positions: list[list[int]]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.concatenate(
            [
                model(torch.tensor([row])).logits[0].double().log_softmax(-1).numpy()[wanted]
                for row, wanted in zip(rows, positions, strict=True)
            ]
        )


def mean_kl(truth: np.ndarray, found: np.ndarray) -> float:
    return float((np.exp(truth) * (truth - found)).sum(axis=1).mean())


def random_rows(seed: int = 3) -> tuple[list[list[int]], list[list[int]]]:
    generator = random.Random(seed)
    rows = [[generator.randrange(3, 400) for _ in range(length)] for length in (1, 7, 60)]
    return rows, [list(range(0, len(row), 3)) for row in rows]
