"""What the options of `teacher=` that can be asked have in common."""

from collections.abc import Sequence
from dataclasses import asdict, field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT

Filter = Literal["cut", "final_answer", "known_answer", "duplicate"]

NEEDED_BY = {"draws": "sampled", "top_k": "top_k", "always_keep": "top_k"}
"""Settings that matter for one kind of targets alone."""
OF_GENERATING = ("temperature", "max_new_tokens", "keep_answers", "filters", "samples")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Asked:
    """A teacher that is asked, and what of its answers is learnt."""

    responses: Literal["generate", "data"] = "generate"
    """Whose text the student learns from: the teacher's own answers, or the data's."""
    keep_answers: bool = False
    """With `responses: generate`: rows that have an answer of their own keep it, the teacher answers the rest."""
    samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """Answers to each prompt; more than one needs a temperature."""
    filters: list[Filter] = field(default_factory=list)
    """Answers that are left out: `cut`, without a `final_answer` (####), with another one than the data's
    (`known_answer`), `duplicate` of another answer to the same prompt."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Sampling temperature of generated answers; 0 takes the most likely token."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256

    def __post_init__(self) -> None:
        if self.samples > 1 and self.responses == "data":
            raise ValueError(f"samples={self.samples}: the data has one answer to each prompt; use responses=generate")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples={self.samples} of the most likely answer are all the same; give a temperature")

    def decides_but(self, not_these: Sequence[str], kind: str | None) -> dict[str, Any]:
        """The part of these settings that decides what is stored with targets of this kind."""
        left_out = {"targets", *not_these, *(name for name, needed_by in NEEDED_BY.items() if needed_by != kind)}
        if self.responses == "data":
            left_out |= set(OF_GENERATING)
        return {name: value for name, value in asdict(self).items() if name not in left_out}
