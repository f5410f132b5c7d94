"""train_like(): a tokenizer of a family's own kind, trained on a few texts: how it splits, pads, begins and ends."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distill.encoding import SPLIT_REGEX
from distill.family.facts import Family

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 2048
"""Small, and still about four characters a token on the texts it was trained on, as a real one has."""

# Split rules as in the tokenizer.json that the family publishes.
_LLAMA_3 = SPLIT_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
SPLITS = {"llama3": _LLAMA_3, "qwen2_5": SPLIT_REGEX, "qwen3": SPLIT_REGEX, "bloom": _BLOOM}
"""Family → its split. The other byte-level ones have GPT-2's, which `tokenizers` brings."""
BEGINS = frozenset({"opt", "llama3"})
"""Byte-level families that put their bos token before a text; all that come from SentencePiece do."""
NORMALISES = frozenset({"qwen2_5", "qwen3"})
"""Families that bring text into NFC first."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def train_like(
    family: Family, texts: Iterable[str], vocab_size: int = VOCAB_SIZE, *, chat: bool = False
) -> "PreTrainedTokenizerFast":
    """A tokenizer of at most `vocab_size` tokens that treats text as the family's does; AutoTokenizer loads it offline.

    Args:
        chat: with the family's chat template, as its published chat models have it.
    """
    from transformers import PreTrainedTokenizerFast

    specials = list(dict.fromkeys([*family.special_tokens.values(), *family.added_tokens]))
    train = _byte_level if family.tokenizer == "byte_level_bpe" else _sentencepiece
    backend = train(family, texts, vocab_size, specials)
    backend.add_special_tokens(specials)
    if family.tokenizer == "sentencepiece_bpe" or family.name in BEGINS:
        _begin_with(backend, family.special_tokens["bos_token"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **dict(family.special_tokens)
    )
    if chat and family.chat_template:
        tokenizer.chat_template = family.chat_template
    return tokenizer


def _byte_level(family: Family, texts: Iterable[str], vocab_size: int, specials: list[str]) -> "Tokenizer":
    """BPE over bytes: every string can be said, nothing is unknown."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    split = SPLITS.get(family.name)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    parts = [pre_tokenizers.Split(Regex(split), behavior="isolated")] if split else []
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*parts, bytes_]) if split else bytes_
    if family.name in NORMALISES:
        bpe.normalizer = normalizers.NFC()
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def _sentencepiece(family: Family, texts: Iterable[str], vocab_size: int, specials: list[str]) -> "Tokenizer":
    """BPE over characters with "▁" for the blank, a dummy prefix, and bytes for characters that it has not seen."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    # only while it learns: SentencePiece makes no piece across a blank, yet merges over the whole text
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    room = vocab_size - len(specials) - len(byte_pieces)
    # half the room: of a script with thousands of signs the rare ones are left to the bytes, as in the real ones
    trainer = trainers.BpeTrainer(vocab_size=room, limit_alphabet=max(64, room // 2), show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learnt = _model(learner)
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].get)
    vocabulary = {piece: number for number, piece in enumerate([*specials, *byte_pieces, *pieces])}
    unknown = family.special_tokens.get("unk_token")
    merges = [tuple(pair) for pair in learnt["merges"]]
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    blanks = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(blanks)
    return bpe


def _begin_with(backend: "Tokenizer", bos: str) -> None:
    from tokenizers import processors

    number = backend.token_to_id(bos)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, number)]
    )


def _model(tokenizer: "Tokenizer") -> dict[str, Any]:
    import json

    return json.loads(tokenizer.to_str())["model"]
