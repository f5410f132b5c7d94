"""`loss=forward_kl`: KL(teacher || student): the student must give mass to all that the teacher says."""

from typing import Literal

from pydantic.dataclasses import dataclass

from distill.loss._compared import Compared
from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ForwardKl(Compared):
    """KL(teacher || student): the student must give mass to all that the teacher says."""

    kind: Literal["forward_kl"]
