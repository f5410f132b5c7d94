"""How figures are written for people: one place for units, digits and which direction is better."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

MISSING = "–"
TO_TEACHER = frozenset({"kl_to_teacher_nats", "top1_agreement"})
"""Scores that compare a model with the teacher."""


@dataclass(frozen=True)
class Score:
    """How one score is shown: `title` and `unit` for a table's head, and the direction that is better."""

    name: str
    title: str
    unit: str
    lower_is_better: bool

    @property
    def head(self) -> str:
        """Title, unit and, where it is the unusual one, direction."""
        words = [self.title, self.unit, "lower is better" if self.lower_is_better else ""]
        return ", ".join(word for word in words if word)

    def show(self, value: float | None) -> str:
        """`value` in this score's unit, without the unit; "–" where there is none."""
        if value is None:
            return MISSING
        return f"{100 * value:.1f}" if self.unit == "%" else digits(value)

    def is_of_itself(self, kind: str | None) -> bool:
        """Whether it compares a model of this kind with itself, as a teacher's agreement with the teacher."""
        return kind == "teacher" and self.name in TO_TEACHER

    def cell(self, model: Mapping[str, Any]) -> str:
        """What a table says of an entry of scores.json."""
        itself = self.is_of_itself(model.get("kind"))
        return MISSING if itself else self.show((model.get("scores") or {}).get(self.name))

    def best(self, values: Iterable[float | None]) -> float | None:
        """The best finite value, or None."""
        finite = [value for value in values if is_finite(value)]
        return (min if self.lower_is_better else max)(finite) if finite else None


_TITLES = {
    "exact_match": "exact match",
    "kl_to_teacher_nats": "KL to teacher",
    "kl_to_student_nats": "KL to student",
    "top1_agreement": "top-1 agreement",
    "bits_per_byte": "bits per byte",
}


def score(name: str) -> Score:
    """How the score called `name` in scores.json is shown. Unknown ones are plain numbers; more is better."""
    title = _TITLES.get(name) or name.removesuffix("_nats").replace("_", " ").replace("exact match ", "exact match, ")
    if name.endswith("_nats"):
        return Score(name, title, "nats/token", lower_is_better=True)
    if any(word in name for word in ("bits_per_byte", "perplexity", "error", "loss")):
        return Score(name, title, "", lower_is_better=True)
    is_share = any(word in name for word in ("match", "agreement", "accuracy", "equal", "pass_at", "recall", "f1"))
    return Score(name, title, "%" if is_share else "", lower_is_better=False)


def scores_of(models: Iterable[Mapping[str, Any]], task: str | None) -> list[Score]:
    """The scores that any of `models` has: the task first, then its kin, the others as met, the teacher's last."""
    names = dict.fromkeys(
        name for model in models for name, value in (model.get("scores") or {}).items() if value is not None
    )

    def place(name: str) -> int:
        if name == task:
            return 0
        if task and name.startswith(task):
            return 1
        return {"kl_to_teacher_nats": 3, "top1_agreement": 4}.get(name, 2)

    return [score(name) for name in sorted(names, key=place)]


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number that can be compared and drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def digits(value: float | None) -> str:
    """Three significant digits: 0.0311, 1.94, 61,300, 8.1e-06."""
    if value is None:
        return MISSING
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"


def size(num_bytes: float | None) -> str:
    """Bytes with the binary unit that fits: 701 KiB, 1.15 MiB, 13.5 GiB."""
    if num_bytes is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{digits(num_bytes)} {unit}"
        num_bytes /= 1024
    return f"{digits(num_bytes)} TiB"


def mebibytes(num_bytes: float | None) -> str:
    """Bytes in MiB, without the unit."""
    return MISSING if num_bytes is None else digits(num_bytes / 2**20)


def duration(seconds: float | None) -> str:
    """0.1 s, 72 s, 12 min 30 s, 5 h 03 min."""
    if seconds is None:
        return MISSING
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
