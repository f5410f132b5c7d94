"""GGUF with 8-bit blocks (Q8_0): the student for llama.cpp, Ollama and LM Studio, on CPUs and small devices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.compression import _gguf_student
from distill.compression._gguf_mixture import Q8_0, Mixture
from distill.compression._gguf_student import GgufOption
from distill.option import STRICT

FILE_NAME = "model-q8_0.gguf"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GgufQ8_0(GgufOption):
    """One file for llama.cpp: 8.5 bits per weight, embeddings included, next to no loss."""

    kind: Literal["gguf_q8_0"]
    max_kl_nats: Annotated[float, Field(gt=0)] = 1e-3
    """The package counts as verified when its mean KL from the student stays below this, in nats per token."""

    mixture: ClassVar[Mixture] = Q8_0

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """One sentence why a student of this config.json cannot become a GGUF, or None; asked before training."""
        return _gguf_student.refuse(config)

    def make(self, student: Path, package: Path) -> None:
        """Write model-q8_0.gguf and a Modelfile for Ollama into `package` from the checkpoint folder `student`.

        Raises:
            StageFailed: the checkpoint or its tokenizer cannot be expressed; the message says which part.
        """
        _gguf_student.export(student, package, FILE_NAME, Q8_0)
