"""Who answers the prompts. One file per option of `teacher=`."""

from typing import Annotated

from pydantic import Field

from distill.teacher.file import File
from distill.teacher.hf import Hf
from distill.teacher.none import NoTeacher
from distill.teacher.routed import Routed
from distill.teacher.server import Server
from distill.teacher.vllm import Vllm

Teacher = Annotated[Hf | Server | Vllm | File | Routed | NoTeacher, Field(discriminator="kind")]

SERVED = frozenset({"server", "vllm"})
"""Kinds that answer over HTTP."""
