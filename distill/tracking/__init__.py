"""Where runs are compared. One file per option of `tracking=`."""

from typing import Annotated

from pydantic import Field

from distill.tracking.none import NoTracking
from distill.tracking.wandb import Wandb

Tracking = Annotated[NoTracking | Wandb, Field(discriminator="kind")]
