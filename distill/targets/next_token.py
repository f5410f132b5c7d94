"""Next-token targets: the log-probability that the teacher gave to each token of the text itself, four bytes a token.

What a student with another tokenizer can be compared with: the probability of a span of text, whoever cut it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.targets.layout import Layout
from distill.targets.places import Places

# S positions of a row, B rows, T positions of a batch


@dataclass(frozen=True)
class NextTokenTargets:
    """`logprobs_S` float32: natural logarithms, exact."""

    logprobs_S: np.ndarray

    def __len__(self) -> int:
        return len(self.logprobs_S)

    def part(self, start: int, stop: int) -> "NextTokenTargets":
        """The positions from `start` up to `stop`."""
        return NextTokenTargets(self.logprobs_S[start:stop])

    def to_bytes(self, layout: Layout) -> bytes:
        """How a store keeps them."""
        return self.logprobs_S.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: memoryview, num_positions: int, layout: Layout) -> "NextTokenTargets":
        """What `to_bytes` was given."""
        return cls(np.frombuffer(data, dtype="<f4", count=num_positions))

    @staticmethod
    def batch(rows: Sequence["NextTokenTargets"], places: Places, layout: Layout) -> dict[str, np.ndarray]:
        """logprobs float32 `[B, T]`."""
        logprobs = np.zeros(places.shape, dtype=np.float32)
        for b, (row, first, count) in enumerate(zip(rows, places.firsts, places.counts, strict=True)):
            logprobs[b, first : first + count] = row.logprobs_S[:count]
        return {"logprobs": logprobs}
