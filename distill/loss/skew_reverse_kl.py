"""`loss=skew_reverse_kl`: reverse KL to a mixture that the student has a part in (Ko et al. 2024, arXiv:2402.03898)."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.loss._compared import Compared
from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SkewReverseKl(Compared):
    """KL(student || m), m = (1 - alpha) teacher + alpha student: ln(1 / alpha) at most, however sure both are."""

    kind: Literal["skew_reverse_kl"]
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Weight of the student in the mixture; the limit at 0 is reverse KL. 0.1 is the authors' choice."""
