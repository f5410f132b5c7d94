"""Terms: what one licence says about a model that learns from another model's outputs."""

from dataclasses import dataclass
from typing import Literal

READ = "2026-11-22"
NO_COMMERCE = "Use what it writes, and what is made of that, for non-commercial research only."

Outputs = Literal[
    "free", "conditions", "passed_on", "non_commercial", "own_derivatives_only", "no_competitors", "unknown"
]
"""What a licence says about training another model on outputs.

free: nothing. conditions: allowed, and something must be done, such as naming it. passed_on: the model that was trained
is under the same terms. non_commercial: for research, not for a business. own_derivatives_only: only models that start
from the same weights may be trained. no_competitors: not what competes with the service. unknown: not read.
"""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One licence, or one service's terms."""

    id: str
    """What `licence.accept` takes."""
    title: str
    url: str
    """Where the text is."""
    read: str
    """ISO date of our reading; of our search for it where nothing was found."""
    copy: str = ""
    """What was read, where it was not the whole text at `url` or a copy of that in a public repository."""
    outputs: Outputs
    clause: str = ""
    """Where in the text `quote` stands."""
    quote: str = ""
    """Word for word, typographic quotation marks made plain, […] for what is left out; empty where nothing was read."""
    conditions: tuple[str, ...] = ()
    """What whoever trains a model on its outputs must do, one plain sentence each."""
    as_base: tuple[str, ...] = ()
    """What whoever passes on a model that starts from its weights must do."""
    notice: str = ""
    """What a text file "Notice" beside the weights must say, word for word."""
    name_begins: str = ""
    """How the name must begin of a model that is passed on and starts from its weights, or was trained on outputs."""
    hub: str = "other"
    """What model hubs call it (`license` of a model card)."""
    hub_name: str = ""
    """With `hub="other"`: the card's `license_name`."""
    hosts: tuple[str, ...] = ()
    """Addresses of a service whose terms these are."""

    @property
    def binds_students(self) -> bool:
        """Whether it reaches a model that was trained on its outputs and holds none of its weights."""
        return self.outputs in {"passed_on", "non_commercial"}
