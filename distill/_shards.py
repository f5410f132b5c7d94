"""Shards: rows as checksummed records, appended one after another. What a store is made of, and read from.

A record is a fixed head, the row's text and source, its token ids packed to the vocabulary's bits, and its targets.
A record that was being written when the process died fails its checksum, and so does one whose disk lost a bit.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.targets import KINDS, Layout, RowTargets
from distill.targets.packing import pack, packed_bytes, unpack

# length of what follows, CRC-32 of it | number, prompt length, T, S, bytes of text, bytes of source, has ids, key
_FRAME = struct.Struct("<II")
_HEAD = struct.Struct("<qIIIIBB16s")
TEXT_ID_BITS = 32
CUT, GOES_ON = "teacher, cut", "data, goes on"
ANSWERED = {"data", "teacher", CUT, GOES_ON, "student"}
"""Sources of rows that have a response to learn from; any other source says why there is none."""

# T tokens of a row, S of its positions with targets


@dataclass(frozen=True)
class Row:
    """One prompt with its response.

    `source` is one of ANSWERED, else why there is no response to learn from.
    `input_ids_T` int32 with the prompt first and, where it ended, the end-of-sequence token last; None in a text store.
    `targets`: the teacher's distributions at the last S of the T - 1 positions that have a next token, or None.
    """

    number: int
    text: str
    source: str
    input_ids_T: np.ndarray | None = None
    prompt_length: int = 0
    targets: RowTargets | None = None

    @property
    def ended(self) -> bool:
        """Whether the response ends here: it was not cut, and is no text that goes on in the next row."""
        return self.source not in {CUT, GOES_ON}

    @property
    def key(self) -> bytes:
        """16 bytes that stand for the row's content: of its token ids, or of its text where there are none."""
        return key_of(self.input_ids_T) if self.input_ids_T is not None else _digest(self.text.encode())


def key_of(input_ids_T: np.ndarray) -> bytes:
    """The key of the row with these token ids: the first 16 bytes of their SHA-256 as little-endian int32."""
    return _digest(np.ascontiguousarray(input_ids_T, dtype="<i4").tobytes())


def encode(row: Row, layout: Layout | None, id_bits: int) -> bytes:
    """A row as a record."""
    text, source = row.text.encode(), row.source.encode()
    num_tokens = 0 if row.input_ids_T is None else len(row.input_ids_T)
    num_targets = 0 if row.targets is None else len(row.targets)
    head = _HEAD.pack(
        row.number,
        row.prompt_length,
        num_tokens,
        num_targets,
        len(text),
        len(source),
        row.input_ids_T is not None,
        row.key,
    )
    parts = [head, text, source]
    if row.input_ids_T is not None:
        # packed to fewer bits than it needs, an id would silently become another one
        assert not (row.input_ids_T.astype(np.int64) >> id_bits).any(), (
            f"row {row.number} has ids of another vocabulary"
        )
        parts.append(pack(row.input_ids_T, id_bits))
    if row.targets is not None:
        assert layout is not None
        parts.append(row.targets.to_bytes(layout))
    body = b"".join(parts)
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def decode(record: memoryview, layout: Layout | None, id_bits: int) -> Row | None:
    """The row of a whole record, or None when its bytes are not what was written."""
    body = _checked(record)
    if body is None:
        return None
    number, prompt_length, num_tokens, num_targets, text_bytes, source_bytes, has_ids, _ = _HEAD.unpack_from(body)
    at = _HEAD.size
    text, at = str(body[at : at + text_bytes], "utf-8"), at + text_bytes
    source, at = str(body[at : at + source_bytes], "utf-8"), at + source_bytes
    ids = None
    if has_ids:
        ids = unpack(body[at:], num_tokens, id_bits).astype(np.int32)
        at += packed_bytes(num_tokens, id_bits)
    targets = None
    if layout is not None and has_ids:
        targets = KINDS[layout.kind].from_bytes(body[at:], num_targets, layout)
    return Row(number, text, source, ids, prompt_length, targets)


@dataclass(frozen=True)
class Found:
    """A record as `scan` meets it: where it lies, and what its head says."""

    offset: int
    length: int
    number: int
    key: bytes
    prompt_length: int
    num_tokens: int
    num_targets: int
    packed_bytes: int
    """Of its token ids and targets together."""
    source: str


def scan(file: Path) -> Iterator[Found]:
    """The whole records of a shard in order, up to the first that is cut or damaged; none where there is no file."""
    if not file.exists():
        return
    with file.open("rb") as shard:
        offset, end = 0, file.stat().st_size
        while frame := shard.read(_FRAME.size):
            if len(frame) < _FRAME.size:
                return
            length, _ = _FRAME.unpack(frame)
            if offset + len(frame) + length > end:  # a damaged length may ask for gigabytes
                return
            record = frame + shard.read(length)
            body = _checked(memoryview(record))
            if body is None:
                return
            number, prompt_length, num_tokens, num_targets, text_bytes, source_bytes, _, key = _HEAD.unpack_from(body)
            at = _HEAD.size + text_bytes
            source, at = str(body[at : at + source_bytes], "utf-8"), at + source_bytes
            counts = (prompt_length, num_tokens, num_targets, len(body) - at)
            yield Found(offset, len(record), number, key, *counts, source)
            offset += len(record)


def _checked(record: memoryview) -> memoryview | None:
    """What follows the frame, if it is whole."""
    if len(record) < _FRAME.size + _HEAD.size:
        return None
    length, checksum = _FRAME.unpack_from(record)
    body = record[_FRAME.size : _FRAME.size + length]
    return body if len(body) == length and zlib.crc32(body) == checksum else None


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]
