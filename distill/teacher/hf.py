"""`teacher=hf`: a transformers checkpoint in this process, from a folder or from the hub."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from distill.checkpoint import checkpoint_folder
from distill.option import STRICT
from distill.teacher._asking import Asked

SMALL_BYTES = 200_000_000
"""Of stored weights: for fewer, dtype=auto is float32."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Hf(Asked):
    """A local or hub checkpoint; asked once, its answers and targets are kept, then it is unloaded."""

    kind: Literal["hf"]
    model: Annotated[str, AfterValidator(checkpoint_folder)]
    """A folder, a hub id, or `bundled:NAME` for a teacher that ships with distill."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    live: bool = False
    """Keep the teacher in memory beside the student: its whole distribution is used, and no `targets` are stored."""
    targets: Literal["auto", "sampled", "top_k", "dense", "frozen_head"] = "auto"
    """What is kept of the teacher's distributions. auto: sampled for forward_kl, top_k for the other divergences."""
    draws: Annotated[int, Field(ge=1, le=4096)] = 50
    """With sampled targets: points drawn on each distribution."""
    top_k: Annotated[int, Field(ge=1, le=4096)] = 64
    """With top_k targets: token ids kept for each position; the rest of the distribution is one tail bucket."""
    always_keep: list[str] = field(default_factory=list)
    """With top_k targets: tokens that every position keeps, such as a tool call's; the end of an answer always is."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Prompts answered at once. A batch is also what is written at once, and what a crash can lose."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: as the checkpoint says, float32 for weights of less than 200 MB."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """bitsandbytes, while loading: a teacher of twice or four times the size fits."""
    device_map: Literal["auto"] | None = None
    """auto: spread over all GPUs (and the CPU's memory) by accelerate; None: on one device."""

    @property
    def tokenizer_from(self) -> tuple[str, str | None]:
        """The checkpoint, and its revision, whose tokenizer gives the token ids of the answers."""
        return self.model, self.revision

    def decides(self, kind: str | None) -> dict[str, Any]:
        """The part of these settings that decides what is stored with targets of this kind, weights aside."""
        # a live teacher gives the same text
        return self.decides_but(("model", "live"), kind)
