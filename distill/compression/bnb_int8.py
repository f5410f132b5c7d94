"""`compression=bnb_int8`: linear layers in 8 bits with LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BnbInt8:
    """A bitsandbytes checkpoint with int8 linear layers; embeddings, norms and the output head in float16."""

    kind: Literal["bnb_int8"]
    outlier_threshold: Annotated[float, Field(ge=0)] = 2.0
    """Columns of activations with a larger value are multiplied in float16; 0: none. The paper's 6 was found on large
    models. On a real 0.26 M Llama decoding one token at a time it gives 1.1e-3 nats, 2 gives 0.8e-3."""
    max_kl_nats: Annotated[float, Field(gt=0)] = 1e-3
    """The package fails verification when its mean divergence from the student is larger."""

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

        # float16 for the rest: as many bytes as bfloat16 with three more digits (1.07e-3 against 1.43e-3 nats on the
        # model above), and the range is no new limit, as bitsandbytes casts the layers' inputs to float16 anyway.
        how = {"load_in_8bit": True, "llm_int8_threshold": self.outlier_threshold}
        quantise(student, package, how, rest=torch.float16)
