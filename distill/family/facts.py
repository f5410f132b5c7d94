"""Family and Published: what is known of a model architecture and of its published checkpoints, with its source.

Facts, and no behaviour: planning and rehearsal work from them without a network. One file per family beside this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TokenizerKind = Literal["byte_level_bpe", "sentencepiece_bpe"]
"""How text becomes tokens: BPE over bytes (GPT-2, Llama 3, Qwen), or SentencePiece BPE with byte fallback (Llama 2)."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One checkpoint as its makers published it."""

    size: str
    """The size in its makers' words, such as "1.5B"."""
    model: str
    """Hub id; for weights that are nowhere to be downloaded, the folder that recipes expect them in."""
    config: Mapping[str, Any]
    """config.json without `model_type`: everything that decides shapes, positions, scales and the vocabulary."""
    parameters: int
    """As transformers counts them; tied weights count once."""
    stored_dtype: Literal["float32", "float16", "bfloat16"]
    """Of the weights that are downloaded."""
    num_tokens: int
    """Entries of its tokenizer, added tokens included; `config["vocab_size"]` may be padded beyond."""
    licence: str
    """Key of `distill.family.licence.TERMS`."""
    revision: str | None = None
    """Full commit on the hub, where we know one."""
    on_hub: bool = True
    """False: weights that were never published, or not in a format that transformers reads."""
    gated: bool = False
    """Downloading needs an account that has accepted the licence."""
    may_be_gated: bool = False
    """It was gated for a time; we do not know whether it is today."""
    has_chat_template: bool = False
    eos_token: str | None = None
    """Its tokenizer's end of sequence, where that is not the family's: a base model beside chat models."""
    aliases: tuple[str, ...] = ()
    """Other hub ids of these weights: the hub sends them on to `model`. People type them, and old recipes hold them."""
    not_loaded: int = 0
    """Parameters that are downloaded and left on the disk, such as a vision tower; `config` and `parameters` are those
    of the language model, see `distill.family.text_part`."""
    as_bin: bool = False
    """The hub has its weights as .bin files alone: they are written a second time, as safetensors, and both stay."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What checkpoints of one family share."""

    name: str
    """As the file is called."""
    title: str
    """As its makers write it."""
    model_type: str
    """config.json's `model_type`; several families may share one."""
    published: tuple[Published, ...]
    """From small to large."""
    lora_targets: tuple[str, ...]
    """Names of the linear layers that take an adapter; the output head is not among them."""
    attention: tuple[str, ...]
    """transformers' attention implementations: of "eager", "sdpa", "flash_attention_2"."""
    tokenizer: TokenizerKind
    special_tokens: Mapping[str, str]
    """bos_token, eos_token, unk_token, pad_token, as far as there are any."""
    added_tokens: tuple[str, ...] = ()
    """Further special tokens that its prompts are made of, such as a chat template's or fill-in-the-middle marks."""
    chat_template: str | None = None
    """The shape of a turn in its chat models, as the shortest template that has it; None where there is none."""
    gguf: str | None
    """llama.cpp's name of the architecture; None: llama.cpp cannot run it."""
    vllm: bool
    """Whether vLLM has its own implementation."""
    tensor_parallel: bool
    """Whether transformers has a tensor-parallel plan for it."""
    fits_float16: bool = True
    """False: what its blocks add up to is larger than float16 can say, and computing in it gives NaN."""
    tiny: Mapping[str, Any] = field(default_factory=dict)
    """The keys of `config` that a tiny model of this family sets, see `tiny.py`; all other keys stay as published."""
    where_weights_are: str = ""
    """What to do for the weights that are not `on_hub`, as a sentence to a user."""
    source: str
    """Where these facts are from."""
