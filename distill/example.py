"""Example: one prompt with, where it has one, its answer. What every `data` option turns its source into."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

Prompt = str | Sequence[Mapping[str, str]]
"""Plain text, or chat messages (`[{"role": ..., "content": ...}, ...]`) that end before the answer."""


@dataclass(frozen=True)
class Example:
    """One row of data.

    `response` is the row's own answer, or None when it has none. Plain language-model text has an empty prompt.
    """

    prompt: str | tuple[Mapping[str, str], ...]
    response: str | None = None
    teacher: str | None = None
    """Which of several teachers is asked."""
    ends: bool = True
    """False: plain text that goes on in the next row, so that no end-of-sequence token follows it."""


@dataclass(frozen=True)
class Examples:
    """What a recipe trains and is judged on.

    `train` rows keep their order (a row's number is its identity in stores and logs).
    `evaluation` maps the name of a metric's row set to its rows: "exact_match" is the main one; further names
    (such as "exact_match_new_templates") are scored beside it.
    """

    train: Sequence[Example]
    evaluation: Mapping[str, Sequence[Example]]
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the training rows themselves: whatever file, slice or seed they came from."""
        return fingerprint_of(self.train)

    @cached_property
    def evaluation_fingerprint(self) -> str:
        """The same of the evaluation rows, which change no training."""
        parts = "".join(name + fingerprint_of(rows) for name, rows in self.evaluation.items())
        return hashlib.sha256(parts.encode()).hexdigest()[:20]


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """The prompt as chat messages: plain text is what a user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def fingerprint_of(rows: Sequence[Example]) -> str:
    """Hash of prompts and answers, and of where a text goes on, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.prompt, row.response, *([] if row.ends else ["goes on"])]).encode())
    return digest.hexdigest()[:20]
