"""GGUF with 8-bit blocks (Q8_0): the student for llama.cpp, Ollama and LM Studio, on CPUs and small devices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.compression import _gguf_student
from distill.compression._about import About
from distill.compression._gguf_mixture import Q8_0, Mixture
from distill.compression._gguf_student import GgufOption
from distill.option import STRICT

FILE_NAME = "model-q8_0.gguf"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GgufQ8_0(GgufOption):
    """One file for llama.cpp: 8.5 bits per weight, embeddings included, next to no loss."""

    kind: Literal["gguf_q8_0"]
    max_kl_nats: Annotated[float, Field(gt=0)] = 5e-3
    """The package fails verification when its mean divergence from the student is larger, in nats per token.

    Q8_0 has 3.7e-4 on Llama 2 7B, 1.4e-3 on Llama 3 8B and 0.8e-3 to 1.3e-3 on a real Llama of 0.26 M; Q6_K, the next
    coarser type, 5.5e-3 on Llama 3 8B. Source: llama.cpp, tools/perplexity/README.md (its tables of revision f364eb6f).
    """

    mixture: ClassVar[Mixture] = Q8_0

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """One sentence why a student of this config.json cannot become a GGUF, or None; asked before training."""
        return _gguf_student.refuse(config)

    def make(self, student: Path, package: Path, *, about: About | None = None) -> None:
        """Write model-q8_0.gguf and a Modelfile for Ollama into `package` from the checkpoint folder `student`.

        `about`: what the file says of the model; None: the folder's name.

        Raises:
            StageFailed: the checkpoint or its tokenizer cannot be expressed; the message says which part.
        """
        _gguf_student.export(student, package, FILE_NAME, Q8_0, about=about)
