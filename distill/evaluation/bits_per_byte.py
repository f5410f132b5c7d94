"""`evaluation=bits_per_byte`: how well is text predicted? Comparable across tokenizers."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BitsPerByte:
    """Bits per UTF-8 byte of the references, and agreement with the teacher; nothing is generated but the samples."""

    kind: Literal["bits_per_byte"]
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Length of the samples in the report."""
    rows: Annotated[int, Field(ge=1)] | None = None
    positions: Annotated[int, Field(ge=1)] = 1000
    """At most so many response tokens on which likelihoods and the divergence from the teacher are measured."""
    samples: Annotated[int, Field(ge=0)] = 12
    speed: bool = True
    """Whether tokens per second are measured: some seconds for each model."""
