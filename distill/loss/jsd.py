"""`loss=jsd`: the generalised Jensen-Shannon divergence (Agarwal et al. 2023, arXiv:2306.13649, eq. 1)."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.loss._compared import Compared
from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Jsd(Compared):
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student."""

    kind: Literal["jsd"]
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of the teacher in the mixture. Divided by it, the limit at 0 is forward KL."""
