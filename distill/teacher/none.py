"""`teacher=none`: the student learns the data's own answers."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NoTeacher:
    """No teacher: the data's own text is what is learnt. For training teachers and baselines."""

    kind: Literal["none"]

    tokenizer_from: ClassVar[None] = None
