"""Who answers the prompts. One file per option of `teacher=`."""

from typing import Annotated

from pydantic import Field

from distill.teacher.file import File
from distill.teacher.hf import Hf
from distill.teacher.none import NoTeacher

Teacher = Annotated[Hf | File | NoTeacher, Field(discriminator="kind")]
