"""No tracker: the run folder is the only logbook."""

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NoTracking:
    """Nothing leaves the run folder."""

    kind: Literal["none"]

    def log_run(self, run: Path) -> None:
        """None: there is nothing to say in the logbook."""
        return None
