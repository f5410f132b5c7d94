"""`loss=skew_forward_kl`: forward KL to a mixture that the teacher has a part in (Ko et al. 2024, arXiv:2402.03898)."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.loss._compared import Compared
from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SkewForwardKl(Compared):
    """KL(teacher || m), m = alpha teacher + (1 - alpha) student: ln(1 / alpha) at most, whatever the student misses."""

    kind: Literal["skew_forward_kl"]
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Weight of the teacher in the mixture; the limit at 0 is forward KL. 0.1 is the authors' choice."""
