"""What the divergences of `loss=` have in common: two distributions, compared at one temperature."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.loss._divergence import divergence_terms
from distill.option import STRICT

if TYPE_CHECKING:
    from distill.loss._divergence import LossTerms, StudentOutput
    from distill.responses import TeacherTargets


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Compared:
    """The student's distribution with the teacher's."""

    kind: str
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Of both distributions; the divergence is multiplied by its square. Stored targets are made at it."""
    hard_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the cross-entropy with the text; the divergence gets the rest."""

    def __call__(self, student: "StudentOutput", targets: "TeacherTargets") -> "LossTerms":
        """Weighted sum over tokens, in nats."""
        return divergence_terms(student=student, targets=targets, **asdict(self))
