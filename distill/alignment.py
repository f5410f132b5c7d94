"""Two tokenisations of one text, cut into the smallest spans of bytes that both have a boundary around.

Each token is given the offset, in UTF-8 bytes of the response, at which it ends. Bytes and not characters: byte-level
BPE and SentencePiece's byte fallback cut inside a character, each at places of its own. An offset that two
tokenisations share is a boundary of a span; between two of them each side has one or more whole tokens, so that
both can say how likely the span is: the sum of its tokens' log-probabilities.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

BLANK = "▁"
NO_SPAN = -1

# N tokens of a response, C spans


@dataclass(frozen=True)
class Spans:
    """Which span each token is in, from 0 without a gap, -1 for tokens after the last boundary that both share."""

    teacher_N: np.ndarray
    student_N: np.ndarray
    count: int


def common_spans(teacher_ends_N: np.ndarray, student_ends_N: np.ndarray) -> Spans:
    """The smallest spans whose ends are ends of a token on both sides; arguments as from `TokenBytes.ends`.

    A token without bytes of its own goes with the token after it.
    """
    boundaries_C = np.intersect1d(teacher_ends_N, student_ends_N)
    teacher_N, student_N = (_span_of(ends_N, boundaries_C) for ends_N in (teacher_ends_N, student_ends_N))
    return Spans(teacher_N, student_N, len(boundaries_C))


class TokenBytes:
    """The bytes that each token of one tokenizer stands for. Read from its vocabulary once; then cheap."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        parts = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())
        added = {token["id"]: token["content"].encode() for token in parts["added_tokens"]}
        to_bytes = _byte_level if _has_type(parts["decoder"], "ByteLevel") else _sentencepiece
        self._bytes = {number: to_bytes(piece) for piece, number in tokenizer.get_vocab().items()} | added
        self._special = frozenset(token["id"] for token in parts["added_tokens"] if token["special"])

    def of(self, token: int) -> bytes:
        """A part of a character where the token is one; nothing for an id that the vocabulary does not have."""
        return self._bytes.get(int(token), b"")

    def ends(self, ids_N: Sequence[int] | np.ndarray, text: str, *, ended: bool) -> np.ndarray:
        """int64 `[N]`, never falling: where each token of the response `text` ends, in bytes.

        With `ended`, the last token says that the response is over, whichever id that is. It ends one byte after
        the text, as it does for every other tokenizer, and thus is a span of its own.
        A blank that the tokenizer put before the text ends at 0, one behind the text where the text does.

        Exact where the tokens' bytes are the text's, blanks around them and skipped special tokens aside. Otherwise:
        * the tokenizer changes text (NFC, lower case): its own offsets, for it makes the same tokens of `text`
          again; parts of a character end where the character begins;
        * the tokens are no valid UTF-8, as after a cut: exact up to the first and from the last difference; the
          tokens between end where the first of them begins, so that they are one span with what follows, if anything.
        """
        said_N = ids_N[: len(ids_N) - ended]
        ends_N = self._exact(said_N, text)
        if ends_N is None:
            ends_N = self._by_the_tokenizer(said_N, text)
        if ends_N is None:
            ends_N = self._around_the_difference(said_N, text)
        return np.append(ends_N, len(text.encode()) + 1) if ended else ends_N

    def _exact(self, ids_N: Sequence[int] | np.ndarray, text: str) -> np.ndarray | None:
        whole = text.encode()
        for skipped in (frozenset(), self._special):
            pieces = [b"" if int(token) in skipped else self.of(token) for token in ids_N]
            said = b"".join(pieces)
            # a tokenizer may put a blank before the text; who stored the text may have stripped it
            before = said.rfind(whole)
            if before >= 0 and not said[:before].strip() and not said[before + len(whole) :].strip():
                return np.minimum(_ends(pieces) - before, len(whole))
        return None

    def _by_the_tokenizer(self, ids_N: Sequence[int] | np.ndarray, text: str) -> np.ndarray | None:
        encoding = self._with_whole_offsets.encode(text, add_special_tokens=False)
        if encoding.ids != [int(token) for token in ids_N]:
            return None
        bytes_before = np.cumsum([0, *(len(character.encode()) for character in text)])
        # where the next one starts: a mark that NFC joined with its letter is in nobody's own offsets
        starts = [start for start, _ in encoding.offsets[1:]] + [len(text)]
        return np.maximum.accumulate(bytes_before[starts[: len(ids_N)]].astype(np.int64))

    @cached_property
    def _with_whole_offsets(self) -> "Tokenizer":
        """The tokenizer, told not to trim blanks from offsets: where one is trimmed, no token ends."""
        from tokenizers import Tokenizer

        parts = json.loads(cast(Any, self._tokenizer).backend_tokenizer.to_str(), object_hook=_untrimmed)
        return Tokenizer.from_str(json.dumps({**parts, "truncation": None, "padding": None}))

    def _around_the_difference(self, ids_N: Sequence[int] | np.ndarray, text: str) -> np.ndarray:
        pieces = [self.of(token) for token in ids_N]
        said, whole = b"".join(pieces), text.encode()
        before = max(0, _num_blanks(said) - _num_blanks(whole))
        said = said[before:]
        first = _whole_characters(whole[: common_length(said, whole)])
        last = common_length(said[first:][::-1], whole[first:][::-1])
        last = _whole_characters(whole[len(whole) - last :])
        ends_N, longer = _ends(pieces) - before, len(whole) - len(said)
        same = ends_N <= first
        same_again = (ends_N >= len(said) - last) & (last > 0)
        return np.select([same, same_again], [ends_N, ends_N + longer], ends_N[same].max(initial=0))


def _span_of(ends_N: np.ndarray, boundaries_C: np.ndarray) -> np.ndarray:
    # a boundary lies behind the first token that reaches it
    before_N = np.searchsorted(boundaries_C, ends_N[:-1], side="right")
    span_N = np.concatenate([np.zeros(min(len(ends_N), 1), dtype=np.int64), before_N])
    return np.where(span_N < len(boundaries_C), span_N, NO_SPAN)


def _ends(pieces: Sequence[bytes]) -> np.ndarray:
    return np.cumsum([len(piece) for piece in pieces], dtype=np.int64)


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """How many bytes, or characters, `a` and `b` have in common from their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _whole_characters(part: bytes) -> int:
    """How many of these bytes belong to characters that are whole."""
    return len(part.decode(errors="ignore").encode())


def _num_blanks(said: bytes) -> int:
    return len(said) - len(said.lstrip(b" "))


def _has_type(part: Any, name: str) -> bool:
    """Whether a part of a tokenizer.json, or one of those it is a sequence of, is of this type."""
    if part is None:
        return False
    return part["type"] == name or any(_has_type(inner, name) for inner in part.get("decoders", ()))


def _untrimmed(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "trim_offsets": False} if "trim_offsets" in part else part


def _bytes_by_character() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _bytes_by_character()


def _byte_level(piece: str) -> bytes:
    if all(character in _BYTE_OF for character in piece):
        return bytes(_BYTE_OF[character] for character in piece)
    return piece.encode()


def _sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(BLANK, " ").encode()
