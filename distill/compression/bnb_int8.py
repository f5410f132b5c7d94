"""`compression=bnb_int8`: linear layers in 8 bits with LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BnbInt8:
    """A bitsandbytes checkpoint with int8 linear layers; embeddings, norms and the output head in float16.

    In bfloat16 where the family computes beyond float16's range.
    """

    kind: Literal["bnb_int8"]
    outlier_threshold: Annotated[float, Field(ge=0)] = 2.0
    """Columns of activations with a larger value are multiplied in float16; 0: none. The paper's 6 was found on large
    models. On a real 0.26 M Llama decoding one token at a time it gives 1.1e-3 nats, 2 gives 0.8e-3."""
    max_kl_nats: Annotated[float, Field(gt=0)] = 5e-3
    """The package fails verification when its mean divergence from the student is larger.

    As for gguf_q8_0: no published figure of LLM.int8() was found, and its scales, one for a row, are no finer than
    those of Q8_0, one for 32 weights. On a real Llama of 0.26 M: 6.5e-4 on its own stories, 2.1e-3 on WikiText.
    """

    runtime: ClassVar[str] = "transformers"
    heals: ClassVar[bool] = False

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """Why a student with this config.json cannot be made int8 on this machine, or None."""
        from distill.compression._bnb import refuse_missing

        return refuse_missing()

    def refuse_tokenizer(self, folder: Path) -> str | None:
        """None: the tokenizer is copied."""
        return None

    def make(self, student: Path, package: Path) -> None:
        """Writes the quantised checkpoint folder `package` from the checkpoint folder `student`."""
        import torch

        from distill.compression._bnb import quantise
        from distill.family.known import family_of

        family = family_of(json.loads((student / "config.json").read_text("utf-8")))
        # float16 for the rest: as many bytes as bfloat16 with three more digits (1.07e-3 against 1.43e-3 nats on the
        # model above). bitsandbytes casts the layers' inputs to it anyway; what they add up to may need more range.
        rest = torch.float16 if family is None or family.fits_float16 else torch.bfloat16
        how = {"load_in_8bit": True, "llm_int8_threshold": self.outlier_threshold}
        quantise(student, package, how, rest=rest)
