"""Frozen-head targets: the student's output head averaged under the teacher's distribution, one vector a position.

With the student's head W frozen, KL(p || q) = LSE(W h) - h . (p W) - H(p) is exact over the whole vocabulary, so p
itself need not be kept: `vectors_SD` = p W and the entropy H(p) are all that the student's hidden state h must meet.
Source: field practice, jonathanc.net 2026; the gradient is exact because W is constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.targets.layout import Layout
from distill.targets.places import Places

# S positions of a row, D the student's hidden size, B rows, T positions of a batch


@dataclass(frozen=True)
class FrozenHeadTargets:
    """`vectors_SD` float32 (kept in bfloat16, rounded to nearest), `entropy_S` float32 in nats."""

    vectors_SD: np.ndarray
    entropy_S: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors_SD)

    def part(self, start: int, stop: int) -> "FrozenHeadTargets":
        """The positions from `start` up to `stop`."""
        return FrozenHeadTargets(self.vectors_SD[start:stop], self.entropy_S[start:stop])

    def to_bytes(self, layout: Layout) -> bytes:
        """How a store keeps them."""
        bits = np.ascontiguousarray(self.vectors_SD, dtype="<f4").view("<u4")
        # to nearest, ties to even, as hardware does it
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        return self.entropy_S.astype("<f4").tobytes() + rounded.astype("<u2").tobytes()

    @classmethod
    def from_bytes(cls, data: memoryview, num_positions: int, layout: Layout) -> "FrozenHeadTargets":
        """What `to_bytes` was given, the vectors rounded."""
        entropy_S = np.frombuffer(data, dtype="<f4", count=num_positions)
        high = np.frombuffer(data[4 * num_positions :], dtype="<u2", count=num_positions * layout.kept)
        vectors_SD = (high.astype("<u4") << 16).view("<f4").reshape(num_positions, layout.kept)
        return cls(vectors_SD, entropy_S)

    @staticmethod
    def batch(rows: Sequence["FrozenHeadTargets"], places: Places, layout: Layout) -> dict[str, np.ndarray]:
        """vectors float32 `[B, T, D]`, entropy float32 `[B, T]`."""
        vectors = np.zeros((*places.shape, layout.kept), dtype=np.float32)
        entropy = np.zeros(places.shape, dtype=np.float32)
        for b, (row, first, count) in enumerate(zip(rows, places.firsts, places.counts, strict=True)):
            vectors[b, first : first + count] = row.vectors_SD[:count]
            entropy[b, first : first + count] = row.entropy_S[:count]
        return {"vectors": vectors, "entropy": entropy}
