"""Places: where the positions of each row's targets stand in a padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Places:
    """`counts[b]` targets of row b are used, the first of them at position `firsts[b]` of a batch of `shape` (B, T)."""

    shape: tuple[int, int]
    firsts: Sequence[int]
    counts: Sequence[int]
