"""Where prompts and answers come from. One file per option of `data=`."""

from typing import Annotated

from pydantic import Field

from distill.data.local import Local
from distill.data.word_problems import WordProblems

Data = Annotated[Local | WordProblems, Field(discriminator="kind")]
