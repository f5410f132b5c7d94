"""`loss=text`: cross-entropy with the response's text; no distribution is asked for."""

from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from distill.loss._divergence import text_terms
from distill.option import STRICT

if TYPE_CHECKING:
    from distill.loss._divergence import LossTerms, StudentOutput
    from distill.responses import TeacherTargets


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Text:
    """-ln q(next token of the text). Works across tokenizers, and without a teacher."""

    kind: Literal["text"]

    def __call__(self, student: "StudentOutput", targets: "TeacherTargets | None" = None) -> "LossTerms":
        """Weighted sum over tokens, in nats. `targets` are not looked at."""
        return text_terms(student)
