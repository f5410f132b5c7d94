"""`loss=reverse_kl`: KL(student || teacher): the student may keep to what the teacher is sure of."""

from typing import Literal

from pydantic.dataclasses import dataclass

from distill.loss._compared import Compared
from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReverseKl(Compared):
    """KL(student || teacher): the student may keep to what the teacher is sure of."""

    kind: Literal["reverse_kl"]
