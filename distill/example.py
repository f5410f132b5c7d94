"""Example: one prompt with, where it has one, its answer. What every `data` option turns its source into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """One row of data.

    `prompt` is plain text, or chat messages (`[{"role": ..., "content": ...}, ...]`) that end before the answer.
    `response` is the row's own answer, or None when it has none. Plain language-model text has an empty prompt.
    """

    prompt: str | tuple[Mapping[str, str], ...]
    response: str | None = None


@dataclass(frozen=True)
class Examples:
    """What a recipe trains and is judged on.

    `train` rows keep their order (a row's number is its identity in stores and logs).
    `evaluation` maps the name of a metric's row set to its rows: "exact_match" is the main one; further names
    (such as "exact_match_new_templates") are scored beside it.
    `fingerprint` is a hash of everything that decides the rows: file contents, fields, slices, seeds.
    """

    train: Sequence[Example]
    evaluation: Mapping[str, Sequence[Example]]
    fingerprint: str
    notes: tuple[str, ...] = field(default=())
