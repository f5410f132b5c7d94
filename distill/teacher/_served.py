"""What `teacher=server` and `teacher=vllm` have in common: what is asked for, and at which pace."""

from dataclasses import asdict, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from distill.checkpoint import checkpoint_folder
from distill.option import STRICT
from distill.teacher._asking import OF_GENERATING, Filter

PACE = ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout_seconds", "max_attempts")
"""How fast it is asked; changes nothing in what it says."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Served:
    """What is asked of a teacher behind an OpenAI-compatible endpoint, and how fast."""

    tokenizer: Annotated[str, AfterValidator(checkpoint_folder)] | None = None
    """The teacher's own: a folder, a hub id or `bundled:NAME`. Needed for token ids and targets, not for text."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of `tokenizer` on the hub."""
    responses: Literal["generate", "data"] = "generate"
    """Whose text the student learns from: the teacher's own answers, or the data's."""
    keep_answers: bool = False
    """With `responses: generate`: rows that have an answer of their own keep it, the teacher answers the rest."""
    samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """Answers to each prompt; more than one needs a temperature."""
    filters: list[Filter] = field(default_factory=list)
    """Answers that are left out: `cut`, without a `final_answer` (####), with another one than the data's
    (`known_answer`), `duplicate` of another answer to the same prompt."""
    targets: Literal["auto", "top_k", "next"] = "auto"
    """What is kept of the teacher's distributions, at temperature 1: the likeliest tokens of each position and one tail
    bucket, or the log-probability of each token of the text alone. auto: top_k."""
    top_k: Annotated[int, Field(ge=1, le=4096)] = 20
    """Targets kept for each token, no more than the endpoint gives: 20 at OpenAI, 5 elsewhere, all by llama.cpp."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Sampling temperature of generated answers; 0 takes the most likely token."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Prompts asked before a batch is written. What a crash loses of a batch is still in the journal of answers."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests in flight at once."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Of prompt and answer together, as providers count them."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Time for one attempt, from the first byte sent to the last received."""
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 8
    """Tries of one request before the run stops; what was answered by then is kept."""

    def __post_init__(self) -> None:
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples={self.samples} of the most likely answer are all the same; give a temperature")

    @property
    def tokenizer_from(self) -> tuple[str, str | None] | None:
        """The checkpoint, and its revision, whose tokenizer gives the token ids of the answers."""
        return (self.tokenizer, self.tokenizer_revision) if self.tokenizer else None

    @property
    def pace(self) -> dict[str, Any]:
        """What an `Endpoint` is told of how fast to ask."""
        return {name: getattr(self, name) for name in PACE}

    def decides(self, kind: str | None) -> dict[str, Any]:
        """The part of these settings that decides what is stored with targets of this kind."""
        left_out = {"batch_size", *PACE, *self._decides_nothing(), *(() if kind == "top_k" else ("top_k",)), "targets"}
        if self.responses == "data":
            left_out |= set(OF_GENERATING)
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def _decides_nothing(self) -> tuple[str, ...]:
        """Further settings of an option that change nothing in what is stored."""
        return ()
