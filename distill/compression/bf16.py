"""`compression=bf16`: the student's weights rounded to bfloat16, half the bytes of float32 and next to no loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bf16:
    """A complete checkpoint in bfloat16, which transformers, vLLM and every trainer read."""

    kind: Literal["bf16"]
    max_kl_nats: Annotated[float, Field(gt=0)] = 5e-3
    """The package fails verification when its mean divergence from the student is larger.

    Less of it is from the weights (2.5e-5 between bfloat16 and float16 on Llama 3 8B, llama.cpp's
    tools/perplexity/README.md) than from computing in bfloat16: 4e-4 on a real Llama of 0.26 M and its own stories,
    2.0e-3 on WikiText.
    """

    runtime: ClassVar[str] = "transformers"
    heals: ClassVar[bool] = False

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """None: every student has a bfloat16 form."""
        return None

    def refuse_tokenizer(self, folder: Path) -> str | None:
        """None: the tokenizer is copied."""
        return None

    def make(self, student: Path, package: Path) -> None:
        """Writes the checkpoint folder `package` from the checkpoint folder `student`."""
        import torch

        from distill.compression._companions import copy_companions
        from distill.runtime._loading import load_model
        from distill.runtime.bnb import quiet

        package.mkdir(parents=True, exist_ok=True)
        model = load_model(student, dtype=torch.bfloat16, device="cpu")
        with quiet():
            model.save_pretrained(package)
        copy_companions(student, package)
