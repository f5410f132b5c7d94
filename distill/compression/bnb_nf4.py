"""`compression=bnb_nf4`: linear layers in 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT

# Each block of 64 weights along a row has one scale.
BLOCK = 64


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BnbNf4:
    """A bitsandbytes checkpoint with nf4 linear layers; embeddings, norms and the output head in bfloat16."""

    kind: Literal["bnb_nf4"]
    double_quant: bool = False
    """Quantise the blocks' scales as well: 4.13 instead of 4.5 bits for each weight."""
    max_kl_nats: Annotated[float, Field(gt=0)] = 0.2
    """The package fails verification when its mean divergence from the student is larger.

    No published figure of nf4 was found. Q4_0, of as many bits, has 0.072 on Llama 3 8B, and 3.4 bits (Q3_K_S) 0.20 to
    0.23. Source: as for gguf_q8_0.
    """

    runtime: ClassVar[str] = "transformers"
    heals: ClassVar[bool] = False

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """Why a student with this config.json cannot be made nf4 on this machine, or None."""
        import torch

        from distill.compression._bnb import linear_widths, refuse_missing

        missing = refuse_missing()
        if missing or torch.cuda.is_available():
            return missing
        # bitsandbytes' CPU kernel mistakes where the blocks of a row begin when they do not divide it: the
        # dequantisation error grows from 9 % to 15-26 % (measured on 0.50.2), without a message.
        wrong = {width: name for name, width in linear_widths(config).items() if width % BLOCK}
        if not wrong:
            return None
        found = " and ".join(f"{width} ({name})" for width, name in sorted(wrong.items()))
        return (
            f"nf4 on a CPU needs every linear layer's input to be a multiple of {BLOCK}, but this student has {found}; "
            f"choose such a hidden_size and intermediate_size, or compress with bnb_int8 or a GGUF instead."
        )

    def refuse_tokenizer(self, folder: Path) -> str | None:
        """None: the tokenizer is copied."""
        return None

    def make(self, student: Path, package: Path) -> None:
        """Writes the quantised checkpoint folder `package` from the checkpoint folder `student`."""
        import torch

        from distill.compression._bnb import quantise

        how = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.double_quant,
            "bnb_4bit_compute_dtype": "bfloat16",
        }
        quantise(student, package, how, rest=torch.bfloat16)
