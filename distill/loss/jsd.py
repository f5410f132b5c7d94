"""`loss=jsd`: the generalised Jensen-Shannon divergence (Agarwal et al. 2023, arXiv:2306.13649, eq. 1)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.loss._divergence import divergence_terms
from distill.option import STRICT

if TYPE_CHECKING:
    from distill.loss._divergence import LossTerms, StudentOutput
    from distill.responses import TeacherTargets


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Jsd:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student."""

    kind: Literal["jsd"]
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of the teacher in the mixture. Divided by it, the limit at 0 is forward KL."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Of both distributions; the divergence is multiplied by its square. Stored targets are made at it."""
    hard_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the cross-entropy with the text; the divergence gets the rest."""

    def __call__(self, student: "StudentOutput", targets: "TeacherTargets") -> "LossTerms":
        """Weighted sum over tokens, in nats."""
        return divergence_terms(
            "jsd", student, targets, beta=self.beta, temperature=self.temperature, hard_weight=self.hard_weight
        )
