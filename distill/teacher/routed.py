"""`teacher=routed`: several teachers; a field of each row says which of them is asked."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT
from distill.teacher.file import File
from distill.teacher.hf import Hf
from distill.teacher.server import Server
from distill.teacher.vllm import Vllm

Asked = Annotated[Hf | Server | Vllm | File, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Routed:
    """Teachers by name, each with a store of its own; `data.teacher_field` is the field of the data with the name."""

    kind: Literal["routed"]
    teachers: Annotated[dict[str, Asked], Field(min_length=1)]
    """name → an option of `teacher=` with its own keys, `kind` included."""

    def __post_init__(self) -> None:
        live = [name for name, teacher in self.teachers.items() if teacher.kind == "hf" and teacher.live]
        if live:
            raise ValueError(f"teachers.{live[0]}.live=true: of several teachers none can be kept beside the student")

    @property
    def responses(self) -> str:
        """ "generate" when one of them answers itself."""
        return "data" if all(teacher.responses == "data" for teacher in self.teachers.values()) else "generate"

    @property
    def tokenizer_from(self) -> tuple[str, str | None] | None:
        """Of the first teacher that has one; a divergence needs that all have the same."""
        return next((teacher.tokenizer_from for teacher in self.teachers.values() if teacher.tokenizer_from), None)
