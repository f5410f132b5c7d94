"""`loss=tvd`: the total variation distance (Wen et al. 2023, arXiv:2307.15190)."""

from typing import Literal

from pydantic.dataclasses import dataclass

from distill.loss._compared import Compared
from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Tvd(Compared):
    """Half the sum of |teacher - student|: the share of tokens on which the two would have to differ, 0 to 1."""

    kind: Literal["tvd"]
