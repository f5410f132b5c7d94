"""What the student minimises. One file per option of `loss=`."""

from typing import Annotated

from pydantic import Field

from distill.loss.aligned import Aligned
from distill.loss.forward_kl import ForwardKl
from distill.loss.jsd import Jsd
from distill.loss.reverse_kl import ReverseKl
from distill.loss.skew_forward_kl import SkewForwardKl
from distill.loss.skew_reverse_kl import SkewReverseKl
from distill.loss.text import Text
from distill.loss.tvd import Tvd

Loss = Annotated[
    ForwardKl | ReverseKl | Jsd | SkewForwardKl | SkewReverseKl | Tvd | Aligned | Text, Field(discriminator="kind")
]
