"""Which weights are trained. One file per option of `adapter=`."""

from typing import Annotated

from pydantic import Field

from distill.adapter.lora import Lora
from distill.adapter.none import NoAdapter
from distill.adapter.qlora import Qlora

Adapter = Annotated[NoAdapter | Lora | Qlora, Field(discriminator="kind")]
