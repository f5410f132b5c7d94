"""Ways to make the student compact. One file per option of `compression=[…]`."""

from typing import Annotated

from pydantic import Field

from distill.compression.bf16 import Bf16
from distill.compression.bnb_int8 import BnbInt8
from distill.compression.bnb_nf4 import BnbNf4
from distill.compression.bnb_nf4_lora import BnbNf4Lora
from distill.compression.gguf_q4_k_m import GgufQ4KM
from distill.compression.gguf_q8_0 import GgufQ8_0
from distill.compression.lora import LoraAdapter

Compression = Annotated[
    Bf16 | BnbInt8 | BnbNf4 | BnbNf4Lora | GgufQ4KM | GgufQ8_0 | LoraAdapter, Field(discriminator="kind")
]
