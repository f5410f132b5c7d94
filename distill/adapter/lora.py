"""`adapter=lora`: low-rank adapters on frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lora:
    """Low-rank adapters; the student's package is the merged model, the adapter alone is `compression=lora`."""

    kind: Literal["lora"]
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | None = None
    """Names of the linear layers that get an adapter; None: all of them but the output head.

    The head can be named too (`lm_head`) where its weights are its own and `dropout` is 0.
    """
