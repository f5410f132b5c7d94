"""StoreWriter: rows into a store as they arrive, batch by batch, so that a crash loses the batch in flight at most.

Which rows make a batch, and which batches a shard, follows from the full list of prompts. A run that goes on finds out
what is missing, cuts what is half-written, and ends with the same bytes as one that was never interrupted.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distill._shards import ANSWERED, TEXT_ID_BITS, Row, encode, scan
from distill.artifact import write_whole
from distill.errors import StageFailed
from distill.responses import HEADER, INDEX, INDEX_TYPE, KEYS, NUMBERS, SUMMARY, Header, shard_file
from distill.targets.packing import bits_for, packed_bytes

SHARD_BATCHES = 32


def _who(header: Mapping[str, Any]) -> str:
    names = ("teacher", "revision", "engine", "dtype", "kind", "kept", "target_temperature", "seed", "num_rows")
    return ", ".join(f"{name} {header[name]}" for name in names if header.get(name) is not None)


class StoreWriter:
    """Fills `folder`; use `missing()` to learn what to ask, `write()` for each answered batch, then `finish()`.

    Several processes may fill one folder: each writes the shards of its part, and one of them makes the writer before
    the others do, and finishes after they have written. `shard_batches`: batches in a shard.
    """

    def __init__(
        self, folder: Path, header: Header, batches: Sequence[Sequence[int]], *, shard_batches: int = SHARD_BATCHES
    ):
        self.folder, self.header, self.batches, self.shard_batches = folder, header, batches, shard_batches
        self.layout = header.layout
        self.id_bits = bits_for(header.vocab_size) if header.vocab_size else TEXT_ID_BITS
        known = folder / HEADER
        text = json.dumps(asdict(header), indent=1)
        if known.exists() and known.read_text() != text:
            raise StageFailed(
                f"{folder} was begun by {_who(json.loads(known.read_text()))}; now it is {_who(asdict(header))}. One "
                "store is of one teacher and engine: install that one again and go on, or delete the folder."
            )
        if not known.exists():
            write_whole(known, text)
        for shard in folder.glob("shard-*.bin"):  # of a plan with smaller batches
            if int(shard.stem.rpartition("-")[2]) >= self._num_shards:
                shard.unlink()

    def missing(self, part: int = 0, parts: int = 1) -> Iterator[Sequence[int]]:
        """The batches that are not in the store yet, in order. Each must be written before the next is taken.

        With `parts`, those of every `parts`-th shard from shard `part` on.
        """
        for number in range(part, self._num_shards, parts):
            planned, file = self._planned(number), shard_file(self.folder, number)
            done, end = self._done(file, planned)
            # unbuffered: what a full disk did not take must not be tried again when the file is closed
            with file.open("ab", buffering=0) as shard:
                shard.truncate(end)
                for numbers in planned[done:]:
                    self._open = shard
                    yield numbers

    def num_missing(self, part: int = 0, parts: int = 1) -> int:
        """Rows that are still to be asked, in that part."""
        rows = 0
        for number in range(part, self._num_shards, parts):
            planned = self._planned(number)
            done, _ = self._done(shard_file(self.folder, number), planned)
            rows += sum(map(len, planned[done:]))
        return rows

    def write(self, rows: Sequence[Row]) -> None:
        """Appends one batch; it has reached the disk when this returns."""
        left = memoryview(b"".join(encode(row, self.layout, self.id_bits) for row in rows))
        while left:
            left = left[self._open.write(left) :]
        os.fsync(self._open.fileno())

    def finish(self) -> Counter[str]:
        """Writes the index, and returns how many rows have their text from where."""
        index = np.zeros(self.header.num_rows, dtype=INDEX_TYPE)
        index["shard"] = -1
        keys = np.zeros(self.header.num_rows, dtype="<u8")
        sources: Counter[str] = Counter()
        num_tokens = num_targets = num_bytes = num_target_bytes = 0
        for number in range(self._num_shards):
            for found in scan(shard_file(self.folder, number)):
                usable = found.source in ANSWERED
                lengths = (found.num_tokens, found.prompt_length)
                index[found.number] = (found.offset, number, found.length, *lengths, usable)
                keys[found.number] = int.from_bytes(found.key[:8], "little")
                sources[found.source] += 1
                num_tokens += found.num_tokens
                num_targets += found.num_targets
                num_bytes += found.length
                num_target_bytes += found.packed_bytes - packed_bytes(found.num_tokens, self.id_bits)
        if (index["shard"] < 0).any():
            absent = np.flatnonzero(index["shard"] < 0)
            raise StageFailed(f"{self.folder}: {len(absent)} rows were not written, the first is row {absent[0]}.")
        order = np.argsort(keys, kind="stable")
        np.save(self.folder / INDEX, index)
        np.save(self.folder / KEYS, keys[order])
        np.save(self.folder / NUMBERS, order.astype("<i8"))
        summary = {
            "rows": len(index),
            "tokens": num_tokens,
            "targets": num_targets,
            "bytes": num_bytes,
            "target_bytes": num_target_bytes,
            "sources": dict(sorted(sources.items())),
        }
        write_whole(self.folder / SUMMARY, json.dumps(summary, indent=1))
        return sources

    @property
    def _num_shards(self) -> int:
        return -(-len(self.batches) // self.shard_batches)

    def _planned(self, shard: int) -> Sequence[Sequence[int]]:
        return self.batches[shard * self.shard_batches : (shard + 1) * self.shard_batches]

    @staticmethod
    def _done(file: Path, planned: Sequence[Sequence[int]]) -> tuple[int, int]:
        """How many whole batches of the plan a shard holds, and the byte at which the last of them ends."""
        records = scan(file)
        end = 0
        for done, numbers in enumerate(planned):
            found = [record for _, record in zip(numbers, records, strict=False)]
            if [record.number for record in found] != list(numbers):
                return done, end
            end = found[-1].offset + found[-1].length if found else end
        return len(planned), end
