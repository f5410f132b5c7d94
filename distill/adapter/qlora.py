"""`adapter=qlora`: adapters on an nf4 base (Dettmers et al. 2023, arXiv:2305.14314)."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Qlora:
    """Low-rank adapters on the student quantised to nf4; merged into the dequantised weights, which is exact."""

    kind: Literal["qlora"]
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | None = None
