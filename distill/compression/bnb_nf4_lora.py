"""`compression=bnb_nf4_lora`: quantise the student to nf4, then heal it with a LoRA on the same teacher targets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.compression.bnb_nf4 import BnbNf4
from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BnbNf4Lora:
    """An nf4 base and an adapter that first takes the rounding error's largest directions, then trains."""

    kind: Literal["bnb_nf4_lora"]
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 16.0
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    max_steps: Annotated[int, Field(ge=1)] = 100
    max_kl_nats: Annotated[float, Field(gt=0)] = 0.5
    """The package fails verification when its mean divergence from the student is larger.

    Larger than bnb_nf4's: it goes on learning from the teacher, and so away from the student too.
    """

    runtime: ClassVar[str] = "transformers"
    heals: ClassVar[bool] = True

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """Why a student of this shape cannot be made nf4, or None."""
        return self._base().refuse(config)

    def refuse_tokenizer(self, folder: Path) -> str | None:
        """transformers reads every tokenizer that it wrote."""
        return None

    def make(self, student: Path, package: Path) -> None:
        """Writes the nf4 base; the compress stage trains the adapter beside it."""
        self._base().make(student, package)

    def _base(self) -> BnbNf4:
        return BnbNf4(kind="bnb_nf4")
