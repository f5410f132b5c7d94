"""`teacher=hf`: a transformers checkpoint in this process, from a folder or from the hub."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from distill.checkpoint import checkpoint_folder
from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Hf:
    """A local or hub checkpoint; asked once, its answers and targets are kept, then it is unloaded."""

    kind: Literal["hf"]
    model: Annotated[str, AfterValidator(checkpoint_folder)]
    """A folder, a hub id, or `bundled:NAME` for a teacher that ships with distill."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    live: bool = False
    """Keep the teacher in memory beside the student and store no targets."""
    responses: Literal["generate", "data"] = "generate"
    """Whose text the student learns from: the teacher's own answers, or the data's."""
    keep_answers: bool = False
    """With `responses: generate`: rows that have an answer of their own keep it, the teacher answers the rest."""
    top_k: Annotated[int, Field(ge=1, le=4096)] = 64
    """Targets kept for each token; the rest of the distribution is one tail bucket."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Sampling temperature of generated answers; 0 takes the most likely token."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Prompts answered at once. A batch is also what is written at once, and what a crash can lose."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: as the checkpoint says, float32 for weights of less than 200 MB."""
