"""Prompt and response as token ids, the same way for teaching, training and scoring.

A tokenizer with a chat template renders a chat; one without gets prompt, newline, response. The response ends
with the tokenizer's end-of-sequence token, so that a student learns to stop.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distill.errors import RecipeError
from distill.example import Prompt, messages_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Single digits, words with their blank, runs of signs: Qwen2's split, one of those that llama.cpp can express.
SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END, PAD = "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def load_tokenizer(name: str | Path, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint; it always has an end-of-sequence and a padding token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(name), revision=revision, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise RecipeError(f"{name}: its tokenizer has no end-of-sequence token, so no answer would ever end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerBase":
    """A byte-level BPE of at most `vocab_size` tokens with our chat template; every string can be encoded."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD, "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Token ids up to where the response begins."""
    if prompt == "":
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [cast(int, start)]
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(messages_of(prompt), tokenize=False, add_generation_prompt=True)
        return tokenizer(cast(str, text), add_special_tokens=False)["input_ids"]
    return tokenizer(without_template(prompt))["input_ids"]


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of plain text that is to be gone on with, as a model of `data.text_field` has learnt it."""
    return [*encode_prompt(tokenizer, ""), *tokenizer(text, add_special_tokens=False)["input_ids"]]


def encode_asked(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str | None) -> list[int]:
    """Token ids from which a model is to answer a row: those of its prompt, or of the `opening` of a plain text."""
    return encode_prompt(tokenizer, prompt) if prompt else encode_text(tokenizer, opening(response or ""))


def opening(text: str) -> str:
    """The first words of a plain text, a hundred characters or half of it at most: what models are asked to go on with.

    From nothing at all, a model would write the same text for every row.
    """
    room = min(100, len(text) // 2)
    words = re.match(rf"(?s).{{1,{room}}}(?<=\S)(?=\s)", text) if room else None
    return words[0] if words else text[:room]


def without_template(prompt: Prompt) -> str:
    """The text of a prompt where there is no chat template; the response begins on a new line."""
    return prompt_text(prompt) + ("\n" if isinstance(prompt, str) else "\nassistant:\n")


def encode_response(tokenizer: "PreTrainedTokenizerBase", response: str) -> list[int]:
    """Token ids of the response with its end-of-sequence token."""
    return [*tokenizer(response, add_special_tokens=False)["input_ids"], cast(int, tokenizer.eos_token_id)]


def decode_response(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The text of generated ids, special tokens left out."""
    return cast(str, tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def prompt_text(prompt: Prompt) -> str:
    """The prompt as people read it."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of what decides token ids: vocabulary, merges, normaliser, pre-tokenizer, added tokens, end of sequence."""
    backend = cast(Any, tokenizer).backend_tokenizer  # only the fast ones have it, their base class does not
    return _hash({**json.loads(backend.to_str()), "eos_token": tokenizer.eos_token})


def template_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of the chat template that makes prompts; the same for all tokenizers without one."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # those with another name, such as tool_use, make none of ours
        template = cast(dict[str, str], template).get("default")
    return hashlib.sha256((template or "").encode()).hexdigest()[:20]


def _hash(parts: dict[str, Any]) -> str:
    # padding and truncation are in there too, but they follow from use, not from the vocabulary
    kept = {name: parts.get(name) for name in ("model", "normalizer", "pre_tokenizer", "added_tokens", "eos_token")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:20]
