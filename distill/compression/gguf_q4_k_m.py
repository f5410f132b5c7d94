"""GGUF with the mixture Q4_K_M: what people put on a Raspberry Pi or a phone."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.compression import _gguf_student
from distill.compression._about import About
from distill.compression._gguf_mixture import Q4_K_M, Mixture
from distill.compression._gguf_student import GgufOption
from distill.option import STRICT

if TYPE_CHECKING:
    import numpy as np

FILE_NAME = "model-q4_k_m.gguf"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GgufQ4KM(GgufOption):
    """One file for llama.cpp with about 4.9 bits per weight: 4 in most matrices, 6 in those that suffer most.

    Rows that are no multiple of 256 get more, 5.5 or 8.5, so that a model of nothing else has about 6.
    """

    kind: Literal["gguf_q4_k_m"]
    max_kl_nats: Annotated[float, Field(gt=0)] = 0.1
    """The package fails verification when its mean divergence from the student is larger, in nats per token.

    Q4_K_M has 0.013 on Llama 2 7B and 0.031 on Llama 3 8B (0.028 with an importance matrix); Q3_K_M, the next coarser
    mixture, 0.10 there. Source: as for gguf_q8_0.
    """

    calibration_rows: Annotated[int, Field(ge=0)] = 128
    """Of the responses, which show the inputs that each matrix must not get wrong; 0: none, all inputs count alike."""

    mixture: ClassVar[Mixture] = Q4_K_M

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """Why a student of this config.json cannot become such a file on this machine, or None."""
        from distill.compression._ggml import refuse_missing

        return _gguf_student.refuse(config) or refuse_missing()

    def make(
        self,
        student: Path,
        package: Path,
        importance: "Mapping[str, np.ndarray] | None" = None,
        *,
        about: About | None = None,
    ) -> list[str]:
        """Write model-q4_k_m.gguf and a Modelfile into `package`; returns what became of rows that are too short.

        Args:
            importance: name of each linear layer in blocks → mean square of each of its inputs, float32 `[in]`.
            about: what the file says of the model; None: the folder's name.

        Raises:
            StageFailed: the checkpoint or its tokenizer cannot be expressed; the message says which part.
        """
        from distill.compression._gguf_mixture import SUPER_BLOCK, is_matrix

        plan = _gguf_student.export(student, package, FILE_NAME, Q4_K_M, importance, about)
        matrices = [one for one in plan if is_matrix(one.name, one.shape)]
        short = [one for one in matrices if one.shape[-1] % SUPER_BLOCK]
        if not short:
            return []
        bits = 8 * sum(one.size_bytes for one in plan) / sum(one.size for one in plan)
        kinds = " and ".join(sorted({one.kind for one in short}))
        said = (
            f"gguf_q4_k_m: {len(short)} of {len(matrices)} matrices have rows that are no multiple of {SUPER_BLOCK} "
            f"and became {kinds}, as in llama.cpp: {bits:.1f} bits per weight."
        )
        if len(short) == len(matrices):
            said += " None has 4 bits; for that, hidden_size and intermediate_size must be such multiples."
        return [said]
