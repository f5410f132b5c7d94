"""Layout: which kind of targets a store keeps, and the sizes that its bytes cannot be read without."""

from dataclasses import dataclass
from typing import Literal

from distill.targets.packing import bits_for

Kind = Literal["sampled", "top_k", "dense", "frozen_head", "next"]
MAX_VOCAB = 1 << 20


@dataclass(frozen=True)
class Layout:
    """The same for all rows of a store.

    `kept`: draws of "sampled", token ids of "top_k", the student's hidden size of "frozen_head"; else 0.
    """

    kind: Kind
    vocab_size: int
    kept: int = 0

    @property
    def id_bits(self) -> int:
        """Bits of one token id."""
        return bits_for(self.vocab_size)
