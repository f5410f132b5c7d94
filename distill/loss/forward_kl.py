"""`loss=forward_kl`: KL(teacher || student): the student must give mass to all that the teacher says."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.loss._divergence import divergence_terms
from distill.option import STRICT

if TYPE_CHECKING:
    from distill.loss._divergence import LossTerms, StudentOutput
    from distill.responses import TeacherTargets


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ForwardKl:
    """KL(teacher || student): the student must give mass to all that the teacher says."""

    kind: Literal["forward_kl"]
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Of both distributions; the divergence is multiplied by its square. Stored targets are made at it."""
    hard_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the cross-entropy with the text; the divergence gets the rest."""

    def __call__(self, student: "StudentOutput", targets: "TeacherTargets") -> "LossTerms":
        """Weighted sum over tokens, in nats."""
        return divergence_terms(
            "forward_kl", student, targets, temperature=self.temperature, hard_weight=self.hard_weight
        )
