"""What models are scored on. One file per option of `evaluation=`."""

from typing import Annotated

from pydantic import Field

from distill.evaluation.bits_per_byte import BitsPerByte
from distill.evaluation.exact_match import ExactMatch

Evaluation = Annotated[ExactMatch | BitsPerByte, Field(discriminator="kind")]
