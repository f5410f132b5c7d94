"""`adapter=none`: all weights are trained."""

from typing import Literal

from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NoAdapter:
    """Full weights."""

    kind: Literal["none"]
