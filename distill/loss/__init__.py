"""What the student minimises. One file per option of `loss=`."""

from typing import Annotated

from pydantic import Field

from distill.loss.aligned import Aligned
from distill.loss.forward_kl import ForwardKl
from distill.loss.jsd import Jsd
from distill.loss.reverse_kl import ReverseKl
from distill.loss.text import Text

Loss = Annotated[ForwardKl | ReverseKl | Jsd | Aligned | Text, Field(discriminator="kind")]
