"""Dense targets: the log-probability of every token, for small vocabularies. Two bytes a token; any temperature."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.targets.layout import Layout
from distill.targets.places import Places

LEAST = -1e4

# S positions of a row, V vocabulary, B rows, T positions of a batch


@dataclass(frozen=True)
class DenseTargets:
    """`logprobs_SV` float32, natural logarithms at temperature 1. Kept in float16: within 2^-11 of each one's value."""

    logprobs_SV: np.ndarray

    def __len__(self) -> int:
        return len(self.logprobs_SV)

    def part(self, start: int, stop: int) -> "DenseTargets":
        """The positions from `start` up to `stop`."""
        return DenseTargets(self.logprobs_SV[start:stop])

    def to_bytes(self, layout: Layout) -> bytes:
        """How a store keeps them."""
        return np.maximum(self.logprobs_SV, LEAST).astype("<f2").tobytes()

    @classmethod
    def from_bytes(cls, data: memoryview, num_positions: int, layout: Layout) -> "DenseTargets":
        """What `to_bytes` was given, rounded."""
        halves = np.frombuffer(data, dtype="<f2", count=num_positions * layout.vocab_size)
        return cls(halves.astype(np.float32).reshape(num_positions, layout.vocab_size))

    @staticmethod
    def batch(rows: Sequence["DenseTargets"], places: Places, layout: Layout) -> dict[str, np.ndarray]:
        """logprobs float32 `[B, T, V]`; the softmax over them is the teacher's distribution."""
        logprobs = np.zeros((*places.shape, layout.vocab_size), dtype=np.float32)
        for b, (row, first, count) in enumerate(zip(rows, places.firsts, places.counts, strict=True)):
            logprobs[b, first : first + count] = row.logprobs_SV[:count]
        return {"logprobs": logprobs}
