"""How the student is trained: names and meanings of transformers' TrainingArguments, except for `batch_size`."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Training:
    """One optimisation: AdamW, a schedule, and a global batch that does not depend on the machine."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows in the global batch, whatever the number of processes and accumulation steps."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Micro-batches that a batch is cut into; the result is the same, memory is saved."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Takes the place of num_train_epochs."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """At most half of all steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On embeddings and on what each attention and MLP block adds to the residual stream."""
    prompt_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the prompt's tokens in the loss, beside 1 for the response's."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Tokens in a row. A longer response is cut; a row whose prompt alone is longer is left out. Both are counted."""
    bf16: bool | None = None
    """bfloat16 autocast. None: where the device multiplies bfloat16 in hardware."""
    save_steps: Annotated[float, Field(gt=0)] = 0.1
    """A checkpoint to resume from every so many steps, or, below 1, after each such share of the steps."""
    logging_steps: Annotated[float, Field(gt=0)] = 0.02
    """The same for the loss curve, which has a point at each checkpoint too."""
    gradient_checkpointing: bool = False
    packing: bool = False
    """Rows stand side by side in sequences of up to max_length tokens, each seeing itself alone: less padding, the same
    loss."""
    sharding: Literal["auto", "none", "full"] = "auto"
    """Under several processes. none: each holds the student (DDP); full: each holds a part of it, of its gradients and
    of Adam's averages (FSDP2); auto: full where they would take more than 40 % of a GPU. The result is the same. With
    on_policy, auto is none: a student that writes is whole. So is, whatever this says, the four-bit one that a package
    heals."""
    on_policy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each batch in which the student learns from its own answers, scored by the teacher."""
    on_policy_rounds: Annotated[int, Field(ge=1)] = 8
    """How often, evenly over the steps, the student answers anew."""
    on_policy_temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Sampling temperature of the student's answers."""
    on_policy_max_new_tokens: Annotated[int, Field(ge=1)] = 128

    @property
    def layout(self) -> Literal["auto", "none", "full"]:
        """`sharding`, with what on_policy makes of auto."""
        return "none" if self.on_policy and self.sharding == "auto" else self.sharding

    def __post_init__(self) -> None:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be cut into {self.gradient_accumulation_steps} equal "
                "micro-batches"
            )
        if self.on_policy and not round(self.on_policy * self.batch_size):
            raise ValueError(f"on_policy={self.on_policy} is less than one of the {self.batch_size} rows of a batch")
        if self.on_policy and self.sharding == "full":
            raise ValueError(
                f"on_policy={self.on_policy} with sharding=full: each process writes its share of the student's "
                "answers, and holds the whole student for that. Use sharding=none; adapter=lora or qlora makes a large "
                "student small enough"
            )
