"""Sampled targets: a few token ids for each position, with how often each was drawn. Unbiased for forward KL alone.

An entry is one number of id bits + count bits: 24 bits for 50 draws from 151,936 tokens. Each position adds two bytes,
the teacher's entropy. Where a position's entries end is not written down: its counts add up to the number of draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.targets.layout import Layout
from distill.targets.packing import bits_for, pack, packed_bytes, unpack
from distill.targets.places import Places

# S positions of a row, E entries of a row, B rows, T positions of a batch, K entries of the fullest position


@dataclass(frozen=True)
class SampledTargets:
    """`token_ids_E` int32 ascending within a position, `counts_E` int32, `ends_S` where each position's entries end.

    `entropy_S` float32: the teacher's own, in nats; forward KL is the sampled cross-entropy minus it. Kept in float16.
    """

    token_ids_E: np.ndarray
    counts_E: np.ndarray
    ends_S: np.ndarray
    entropy_S: np.ndarray

    @classmethod
    def of_draws(cls, drawn_SD: np.ndarray, entropy_S: np.ndarray) -> "SampledTargets":
        """From token ids `[S, draws]`, ascending in each row."""
        is_first_SD = np.ones(drawn_SD.shape, dtype=bool)
        is_first_SD[:, 1:] = drawn_SD[:, 1:] != drawn_SD[:, :-1]
        starts_E = np.flatnonzero(is_first_SD)
        counts_E = np.diff(starts_E, append=drawn_SD.size)
        ids_E = drawn_SD.reshape(-1)[starts_E].astype(np.int32)
        ends_S = is_first_SD.sum(axis=1).cumsum()
        return cls(ids_E, counts_E.astype(np.int32), ends_S, entropy_S.astype(np.float32))

    def __len__(self) -> int:
        return len(self.ends_S)

    def part(self, start: int, stop: int) -> "SampledTargets":
        """The positions from `start` up to `stop`."""
        first = int(self.ends_S[start - 1]) if start else 0
        last = int(self.ends_S[stop - 1]) if stop else 0
        entries = slice(first, last)
        return SampledTargets(
            self.token_ids_E[entries],
            self.counts_E[entries],
            self.ends_S[start:stop] - first,
            self.entropy_S[start:stop],
        )

    def to_bytes(self, layout: Layout) -> bytes:
        """How a store keeps them."""
        count_bits = bits_for(layout.kept)
        numbers_E = self.token_ids_E.astype(np.uint64) << np.uint64(count_bits)
        numbers_E |= (self.counts_E - 1).astype(np.uint64)
        return self.entropy_S.astype("<f2").tobytes() + pack(numbers_E, layout.id_bits + count_bits)

    @classmethod
    def from_bytes(cls, data: memoryview, num_positions: int, layout: Layout) -> "SampledTargets":
        """What `to_bytes` was given, the entropy rounded."""
        entropy_S = np.frombuffer(data, dtype="<f2", count=num_positions).astype(np.float32)
        count_bits = bits_for(layout.kept)
        width = layout.id_bits + count_bits
        entries = data[2 * num_positions :]
        numbers_E = unpack(entries, len(entries) * 8 // width, width)
        counts_E = (numbers_E & np.uint64((1 << count_bits) - 1)).astype(np.int32) + 1
        # of S positions: entries of less than a byte may seem to go on in the padding of the last byte
        ends_S = counts_E.cumsum().searchsorted(np.arange(1, num_positions + 1) * layout.kept) + 1
        E = int(ends_S[-1]) if num_positions else 0
        return cls((numbers_E[:E] >> np.uint64(count_bits)).astype(np.int32), counts_E[:E], ends_S, entropy_S)

    @staticmethod
    def batch(rows: Sequence["SampledTargets"], places: Places, layout: Layout) -> dict[str, np.ndarray]:
        """token_ids int32 `[B, T, K]` (-1 pads), values (count / draws) and entropy `[B, T]` float32."""
        kept = [row.part(0, n) for row, n in zip(rows, places.counts, strict=True)]
        sizes = [np.diff(row.ends_S, prepend=0) for row in kept]
        K = max((int(size.max()) for size in sizes if len(size)), default=1)
        token_ids = np.full((*places.shape, K), -1, dtype=np.int32)
        values = np.zeros((*places.shape, K), dtype=np.float32)
        entropy = np.zeros(places.shape, dtype=np.float32)
        for b, (row, size, first) in enumerate(zip(kept, sizes, places.firsts, strict=True)):
            t = np.repeat(np.arange(len(size)), size)
            k = np.arange(len(t)) - np.repeat(row.ends_S - size, size)
            token_ids[b, first + t, k] = row.token_ids_E
            values[b, first + t, k] = row.counts_E / np.float32(layout.kept)
            entropy[b, first : first + len(size)] = row.entropy_S
        return {"token_ids": token_ids, "values": values, "entropy": entropy}


def sampled_bytes(num_entries: int, num_positions: int, layout: Layout) -> int:
    """Bytes of a row's targets."""
    return 2 * num_positions + packed_bytes(num_entries, layout.id_bits + bits_for(layout.kept))
