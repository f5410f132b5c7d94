"""Samples for the report: which ones to show, and models that answered alike side by side as one."""

from collections.abc import Mapping, Sequence
from typing import Any

_MOST_CHARACTERS = 3000


def side_by_side(samples: Sequence[Mapping[str, Any]], most: int = 10) -> list[dict[str, Any]]:
    """At most `most` samples: where models disagree, where all are right and where all are wrong, taking turns.

    Each has `prompt`, `reference` (or None), `verdict` and `answers`: one entry for every different answer, with the
    `models` that gave it, its `text`, and whether it is `correct` (None where nobody judged).
    """
    sorts: dict[str, list[dict[str, Any]]] = {"models disagree": [], "all right": [], "all wrong": [], "": []}
    for sample in samples:
        shown = _shown(sample)
        sorts[shown["verdict"]].append(shown)
    # two of three where models disagree: there is something to see
    order = ["models disagree", "all right", "models disagree", "all wrong", ""]
    chosen: list[dict[str, Any]] = []
    while len(chosen) < most and any(sorts.values()):
        for verdict in order:
            if sorts[verdict] and len(chosen) < most:
                chosen.append(sorts[verdict].pop(0))
    return chosen


def as_text(value: Any) -> str:
    """A prompt as text: as it is, or chat messages as `role: content` paragraphs; cut, with a note, when very long."""
    if isinstance(value, list | tuple):
        value = "\n\n".join(
            f"{part.get('role', '')}: {part.get('content', '')}" if isinstance(part, Mapping) else str(part)
            for part in value
        )
    text = "" if value is None else str(value)
    left_out = len(text) - _MOST_CHARACTERS
    return text if left_out <= 0 else f"{text[:_MOST_CHARACTERS]}… ({left_out:,} more characters)"


def _shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    correct = sample.get("correct") or {}
    groups: dict[tuple[str, bool | None], list[str]] = {}
    for model, answer in (sample.get("answers") or {}).items():
        groups.setdefault((as_text(answer), correct.get(model)), []).append(str(model))
    judged = {verdict for _, verdict in groups if verdict is not None}
    reference = sample.get("reference")
    return {
        "prompt": as_text(sample.get("prompt")),
        "reference": None if reference is None else as_text(reference),
        "verdict": {0: "", 1: "all right" if True in judged else "all wrong", 2: "models disagree"}[len(judged)],
        "answers": [{"models": names, "text": text, "correct": right} for (text, right), names in groups.items()],
    }
