"""TeacherResponses on disk, TeacherTargets in a batch: what the teacher said, asked once.

A store is a folder: `header.json`, shards of rows (`shard-00000.bin`, see `_shards.py`), and an index by row number and
by content. Everything is memory-mapped, so that opening a store of a billion tokens costs no memory, and any order of
rows, packing, batch or number of processes reads the right row.
"""

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from distill._shards import TEXT_ID_BITS, Row, decode, key_of
from distill.errors import StageFailed, TargetMismatch
from distill.targets import Kind, Layout
from distill.targets.packing import bits_for

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DamagedStore", "Header", "Row", "TeacherResponses", "TeacherTargets"]

HEADER, SUMMARY, INDEX, KEYS, NUMBERS = "header.json", "summary.json", "index.npy", "keys.npy", "numbers.npy"
INDEX_TYPE = np.dtype(
    [("offset", "<i8"), ("shard", "<i4"), ("length", "<u4"), ("tokens", "<i4"), ("prompt", "<i4"), ("usable", "?")]
)
"""Where each row lies, and what a batch plan must know of it; `usable`: it has a response to learn from."""

MAPPED_SHARDS = 128
"""At once: each map holds a file open, and a process may often open no more than 1,024."""

# B rows, T positions, K targets kept, V vocabulary, D hidden size


class DamagedStore(StageFailed):
    """A shard, or the index, does not hold what was written; `shard` is the file."""

    def __init__(self, shard: Path):
        super().__init__(f"{shard} is damaged: it does not hold what was written.")
        self.shard = shard


@dataclass(frozen=True, kw_only=True)
class Header:
    """Who answered, and what a reader must share to use it."""

    teacher: str
    revision: str | None = None
    engine: str
    dtype: str
    kind: Literal["text", "tokens"] | Kind
    """text: no token ids; tokens: token ids without targets; else the kind of targets."""
    tokenizer_hash: str | None = None
    template_hash: str | None = None
    vocab_size: int | None = None
    kept: int = 0
    """See `Layout`."""
    target_temperature: float = 1.0
    seed: int | None = None
    """Of the draws of sampled targets."""
    always_keep: tuple[int, ...] = ()
    """Token ids that are among every position's top-k targets."""
    samples: int = 1
    """Responses to each prompt: row `prompt * samples + sample`."""
    num_rows: int

    @property
    def layout(self) -> Layout | None:
        """How the targets are kept, None without."""
        if self.kind in {"text", "tokens"}:
            return None
        assert self.vocab_size is not None
        return Layout(self.kind, self.vocab_size, self.kept)  # type: ignore[arg-type]

    def require(self, *, tokenizer_hash: str, template_hash: str, student: str, store: Path) -> None:
        """Raises TargetMismatch, naming both sides, when a student's tokenizer is not the teacher's."""
        for what, ours, theirs in (
            ("tokenizer", self.tokenizer_hash, tokenizer_hash),
            ("chat template", self.template_hash, template_hash),
        ):
            if ours != theirs:
                raise TargetMismatch(
                    f"{store} holds targets of {self.teacher} ({what} {ours}), but {student} has {what} {theirs}. "
                    "Choose a student of the same family, student=scratch (it takes the teacher's tokenizer), "
                    "loss=aligned for another tokenizer, or loss=text."
                )

    def require_tokenizer(self, tokenizer_hash: str, store: Path) -> None:
        """Raises TargetMismatch when the store's token ids are not those of the tokenizer that is to read them."""
        if self.tokenizer_hash != tokenizer_hash:
            raise TargetMismatch(
                f"{store} holds tokens of {self.teacher} (tokenizer {self.tokenizer_hash}), but the teacher's "
                f"tokenizer is {tokenizer_hash} now. Name the one that the answers were made with, or ask again."
            )

    def require_layout(self, other: "Header", store: Path) -> None:
        """Raises TargetMismatch, naming both sides, when the targets of two teachers cannot share a batch."""
        mine, theirs = ((h.layout, h.target_temperature) for h in (self, other))
        if mine != theirs:
            raise TargetMismatch(
                f"{store} ({self.teacher}) keeps {self.kind} targets of {self.kept} among {self.vocab_size} tokens at "
                f"temperature {self.target_temperature}; {other.teacher} {other.kind} of {other.kept} among "
                f"{other.vocab_size} at {other.target_temperature}. Give all teachers the same targets."
            )


@dataclass(frozen=True)
class TeacherTargets:
    """What a loss receives: stored targets, or the live teacher's hidden states. A loss never knows from where.

    "top_k": `token_ids_BTK` int32 (-1 pads), `values_BTK` float32 log-probabilities at `temperature`, and the
    tail's as the one after the last.
    "sampled": `token_ids_BTK`, `values_BTK` weights that add up to one, `entropy_BT` the teacher's own, in nats.
    "dense": `logprobs_BTV` float32 at temperature 1.
    "frozen_head": `vectors_BTD` the student's head under the teacher's distribution, `entropy_BT`.
    "spans": `span_BT` int64, the span that each position's next token belongs to (-1: none), `span_logprob_BC` float32,
    the teacher's log-probability of each span's text.
    "live": `hidden_BTD` and `head_VD` with what the architecture does to its logits.
    """

    kind: Literal["top_k", "sampled", "dense", "frozen_head", "spans", "live"]
    temperature: float = 1.0
    token_ids_BTK: "Tensor | None" = None
    values_BTK: "Tensor | None" = None
    entropy_BT: "Tensor | None" = None
    logprobs_BTV: "Tensor | None" = None
    vectors_BTD: "Tensor | None" = None
    span_BT: "Tensor | None" = None
    span_logprob_BC: "Tensor | None" = None
    hidden_BTD: "Tensor | None" = None
    head_VD: "Tensor | None" = None
    bias_V: "Tensor | None" = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of_batch(cls, kind: str, temperature: float, batch: "Mapping[str, Tensor]") -> "TeacherTargets":
        """From the arrays that the kind's own `batch()` laid out."""
        fields = {name: batch[key] for key, name in _FIELDS.items() if key in batch}
        return cls(kind, temperature, **fields)  # type: ignore[arg-type]


_FIELDS = {
    "token_ids": "token_ids_BTK",
    "values": "values_BTK",
    "entropy": "entropy_BT",
    "logprobs": "logprobs_BTV",
    "vectors": "vectors_BTD",
    "span": "span_BT",
    "span_logprob": "span_logprob_BC",
}


class TeacherResponses:
    """A store, opened for reading: rows by number, or by content."""

    def __init__(self, path: Path):
        self.path = path
        if not (path / SUMMARY).exists():
            raise StageFailed(f"{path} is no finished store of responses: it has no {SUMMARY}.")
        header = json.loads((path / HEADER).read_text())
        self.header = Header(**{**header, "always_keep": tuple(header["always_keep"])})
        self.summary: dict[str, Any] = json.loads((path / SUMMARY).read_text())
        self.layout = self.header.layout
        self._id_bits = bits_for(self.header.vocab_size) if self.header.vocab_size else TEXT_ID_BITS
        self._index: np.ndarray = np.load(path / INDEX, mmap_mode="r")
        self._keys: np.ndarray = np.load(path / KEYS, mmap_mode="r")
        self._numbers: np.ndarray = np.load(path / NUMBERS, mmap_mode="r")
        self._shards: dict[int, memoryview] = {}

    def __len__(self) -> int:
        return self.header.num_rows

    def __getitem__(self, number: int) -> Row:
        """Row `number`.

        Raises:
            DamagedStore: its bytes are not what was written.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        offset, shard, length, num_tokens, prompt_length, _ = self._index[number].item()
        record = self._shard(shard)[offset : offset + length]
        row = decode(record, self.layout, self._id_bits)
        if row is None or row.number != number:
            raise DamagedStore(shard_file(self.path, shard))
        found = 0 if row.input_ids_T is None else len(row.input_ids_T)
        if (found, row.prompt_length) != (num_tokens, prompt_length):  # a batch is laid out by what the index says
            raise DamagedStore(self.path / INDEX)
        return row

    def lengths(self, number: int) -> tuple[int, int] | None:
        """Tokens of row `number` and of its prompt, without reading it; None when there is no response to learn."""
        *_, tokens, prompt, usable = self._index[number].item()
        return (tokens, prompt) if usable else None

    def find(self, input_ids_T: np.ndarray) -> Row | None:
        """The first row with these token ids, wherever it stands; None when there is none."""
        key = key_of(input_ids_T)
        wanted = np.uint64(int.from_bytes(key[:8], "little"))
        for place in range(int(np.searchsorted(self._keys, wanted)), len(self)):
            if self._keys[place] != wanted:
                break
            row = self[int(self._numbers[place])]
            if row.key == key:
                return row
        return None

    def _shard(self, number: int) -> memoryview:
        if number not in self._shards:
            if len(self._shards) == MAPPED_SHARDS:
                del self._shards[next(iter(self._shards))]  # rows that still look into it keep it alive
            file = shard_file(self.path, number)
            try:
                with file.open("rb") as opened:
                    mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            except (FileNotFoundError, ValueError):  # gone, or empty
                raise DamagedStore(file) from None
            self._shards[number] = memoryview(mapped)
        return self._shards[number]


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard of the store lies."""
    return folder / f"shard-{number:05d}.bin"
