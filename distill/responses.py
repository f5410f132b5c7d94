"""TeacherResponses on disk, TeacherTargets in a batch: what the teacher said, asked once.

A store is a folder with `header.json` and one file a batch, `batch-00000.safetensors`. Batches are fixed by the
full list of prompts and are the unit of writing, so a crash loses at most the batch in flight and the next run
makes the very same ones. Rows are found by number through `rows`, in any order, without reading the rest.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from distill.artifact import write_whole
from distill.errors import StageFailed, TargetMismatch

if TYPE_CHECKING:
    from torch import Tensor

# T tokens of a row, S of them with targets, K targets kept for a token, B rows, V vocabulary, D hidden size


@dataclass(frozen=True)
class Header:
    """Who answered, and what a reader must share to use it."""

    teacher: str
    revision: str | None
    engine: str
    dtype: str
    kind: Literal["text", "tokens", "top_k"]
    tokenizer_hash: str | None
    template_hash: str | None
    vocab_size: int | None
    top_k: int | None
    target_temperature: float
    num_rows: int

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
                    "or loss=text."
                )


@dataclass(frozen=True)
class Row:
    """One prompt with its response. Arrays are views into the file.

    `source` is "data" or "teacher", "teacher, cut" for an answer that was cut, else why there is no response.
    `input_ids_T` int32 with the prompt first and the end-of-sequence token last, or None in a text store.
    `token_ids_SK` int32 and `logprobs_SK` float32: the likeliest next tokens at the last S of the T - 1 positions
    that have a next token, natural logarithms at temperature 1; the rest of the mass is the tail.
    """

    number: int
    text: str
    source: str
    input_ids_T: np.ndarray | None = None
    prompt_length: int = 0
    token_ids_SK: np.ndarray | None = None
    logprobs_SK: np.ndarray | None = None


@dataclass(frozen=True)
class TeacherTargets:
    """What a loss receives: stored top-k targets, or the live teacher's hidden states. A loss never knows from where.

    kind "top_k": `token_ids_BTK` int32 (-1 pads), `logprobs_BTK` float32.
    kind "live": `hidden_BTD` and `head_VD` with what the architecture does to its logits.
    """

    kind: Literal["top_k", "live"]
    token_ids_BTK: "Tensor | None" = None
    logprobs_BTK: "Tensor | None" = None
    hidden_BTD: "Tensor | None" = None
    head_VD: "Tensor | None" = None
    bias_V: "Tensor | None" = None
    scale: float = 1.0
    softcap: float | None = None


class TeacherResponses:
    """A store, opened for reading. Memory-mapped: it costs what is read."""

    def __init__(self, path: Path):
        self.path = path
        self.header = Header(**json.loads((path / "header.json").read_text()))
        self._where: dict[int, tuple[Path, int]] = {}
        for file in sorted(path.glob("batch-*.safetensors")):
            for position, number in enumerate(_open_batch(file).tensors["rows"]):
                self._where[int(number)] = (file, position)
        if len(self._where) != self.header.num_rows:
            raise StageFailed(
                f"{path} holds {len(self._where)} of {self.header.num_rows} rows; delete it and run again."
            )

    def __len__(self) -> int:
        return self.header.num_rows

    def sources(self) -> Counter[str]:
        """How many rows have their text from where: the teacher, the data, or nowhere, and why."""
        files = {file for file, _ in self._where.values()}
        return Counter(source for file in files for _, source in _open_batch(file).texts)

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < len(self):
            raise IndexError(number)
        file, position = self._where[number]
        return _open_batch(file).row(number, position)


def write_batch(path: Path, rows: list[Row]) -> None:
    """Writes one batch whole, or not at all."""
    from safetensors.numpy import save

    filled = cast(list[Any], rows)  # all rows of a batch have the same arrays, or none has
    tensors: dict[str, np.ndarray] = {"rows": np.array([row.number for row in rows], dtype=np.int64)}
    if rows and rows[0].input_ids_T is not None:
        tensors["input_ids"] = np.concatenate([row.input_ids_T for row in filled]).astype(np.int32)
        tensors["lengths"] = np.array([len(row.input_ids_T) for row in filled], dtype=np.int64)
        tensors["prompt_lengths"] = np.array([row.prompt_length for row in rows], dtype=np.int64)
    if rows and rows[0].token_ids_SK is not None:
        tensors["target_ids"] = np.concatenate([row.token_ids_SK for row in filled]).astype(np.int32)
        tensors["target_logprobs"] = np.concatenate([row.logprobs_SK for row in filled]).astype(np.float32)
        tensors["target_lengths"] = np.array([len(row.token_ids_SK) for row in filled], dtype=np.int64)
    texts = json.dumps([[row.text, row.source] for row in rows])
    write_whole(path, save(tensors, metadata={"texts": texts}))


def write_header(path: Path, header: Header) -> None:
    """Writes `header.json`."""
    write_whole(path / "header.json", json.dumps(asdict(header), indent=1))


@dataclass(frozen=True)
class _Batch:
    tensors: Mapping[str, np.ndarray]
    texts: list[list[str]]

    def row(self, number: int, position: int) -> Row:
        text, source = self.texts[position]
        if "input_ids" not in self.tensors:
            return Row(number, text, source)
        ids = self._part("input_ids", "lengths", position)
        prompt_length = int(self.tensors["prompt_lengths"][position])
        if "target_ids" not in self.tensors:
            return Row(number, text, source, ids, prompt_length)
        return Row(
            number,
            text,
            source,
            ids,
            prompt_length,
            self._part("target_ids", "target_lengths", position),
            self._part("target_logprobs", "target_lengths", position),
        )

    def _part(self, name: str, lengths: str, position: int) -> np.ndarray:
        ends = self.tensors[f"{lengths}_ends"]
        start = int(ends[position - 1]) if position else 0
        return self.tensors[name][start : int(ends[position])]


@lru_cache(maxsize=4096)
def _open_batch(file: Path) -> _Batch:
    """Tensors of a safetensors file as memory maps; its own loader would copy the whole file into memory."""
    with file.open("rb") as opened:
        header_size = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(header_size))
    texts = json.loads(header.pop("__metadata__")["texts"])
    dtypes = {"I32": np.int32, "I64": np.int64, "F32": np.float32}
    whole = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + header_size) if header else np.empty(0, np.uint8)
    tensors: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = whole[start:end].view(dtypes[entry["dtype"]]).reshape(entry["shape"])
        if name.endswith("lengths"):
            tensors[f"{name}_ends"] = np.cumsum(tensors[name])
    return _Batch(tensors, texts)
