"""What is trained. One file per option of `student=`."""

from typing import Annotated

from pydantic import Field

from distill.student.pretrained import Pretrained
from distill.student.scratch import Scratch

Student = Annotated[Pretrained | Scratch, Field(discriminator="kind")]
