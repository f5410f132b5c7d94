"""What `teacher=server` and `teacher=vllm` have in common: what is asked for, and at which pace."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from distill.checkpoint import checkpoint_folder
from distill.option import STRICT
from distill.teacher._asking import Asked

PACE = ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout_seconds", "max_attempts")
"""How fast it is asked; changes nothing in what it says."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Served(Asked):
    """What is asked of a teacher behind an OpenAI-compatible endpoint, and how fast."""

    tokenizer: Annotated[str, AfterValidator(checkpoint_folder)] | None = None
    """The teacher's own: a folder, a hub id or `bundled:NAME`. Needed for token ids and targets, not for text."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of `tokenizer` on the hub."""
    targets: Literal["auto", "top_k", "next"] = "auto"
    """What is kept of the teacher's distributions, at temperature 1: the likeliest tokens of each position and one tail
    bucket, or the log-probability of each token of the text alone. auto: top_k."""
    top_k: Annotated[int, Field(ge=1, le=4096)] = 20
    """Targets kept for each token, no more than the endpoint gives: 20 at OpenAI, 5 elsewhere, all by llama.cpp."""
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
        return self.decides_but(("batch_size", *PACE, *self._decides_nothing()), kind)

    def _decides_nothing(self) -> tuple[str, ...]:
        """Further settings of an option that change nothing in what is stored."""
        return ()
