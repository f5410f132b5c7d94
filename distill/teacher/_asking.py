"""What the options of `teacher=` that can be asked have in common."""

from collections.abc import Sequence
from typing import Any, Literal

Targets = Literal["auto", "sampled", "top_k", "dense", "frozen_head"]
Filter = Literal["cut", "final_answer", "known_answer", "duplicate"]

NEEDED_BY = {"draws": "sampled", "top_k": "top_k", "always_keep": "top_k"}
"""Settings that matter for one kind of targets alone."""
OF_GENERATING = ("temperature", "max_new_tokens", "keep_answers", "filters", "samples")


def decides(settings: dict[str, Any], kind: str | None, *, but_not: Sequence[str]) -> dict[str, Any]:
    """The settings without those that change nothing in the responses that are stored."""
    left_out = {"targets", *but_not, *(name for name, needed_by in NEEDED_BY.items() if needed_by != kind)}
    if settings["responses"] == "data":
        left_out |= set(OF_GENERATING)
    return {name: value for name, value in settings.items() if name not in left_out}
