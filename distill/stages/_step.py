"""Step: body, head and loss of one micro-batch as one module, which is what several processes wrap.

Wrapped as a whole, its root gathers the head once before the forward and its gradients flow as any other's: the loss
reads the head's weight beside the body, and would meet a shard of it anywhere else.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.family.head import hidden_states, output_head
from distill.loss._divergence import LossTerms, StudentOutput
from distill.responses import TeacherTargets


class Step(nn.Module):
    """`forward(batch)` is the loss of a collated batch in nats, summed over its counted tokens.

    Args:
        student: the model that is trained; PEFT's wrappers are read through.
        teacher: a live teacher, or None. `teacher_states` (called like `hidden_states`) gives its hidden states where
            calling its body does not (it is sharded).
        stored: kind and temperature of stored targets; None where the loss needs no teacher.
    """

    def __init__(
        self,
        student: Any,
        distill_loss: Callable[..., LossTerms],
        *,
        teacher: Any = None,
        teacher_states: Callable[..., Tensor] | None = None,
        stored: tuple[str, float] | None = None,
        bf16: bool,
    ):
        super().__init__()
        self.student = student
        self.distill_loss = distill_loss
        # a tuple hides the teacher from everything that walks over submodules: it is never trained, saved or wrapped
        self._teacher = (teacher, teacher_states or partial(hidden_states, teacher))
        self.stored = stored
        self.autocast_bf16 = bf16

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        device = batch["input_ids"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast_bf16):
            hidden_BTD = hidden_states(self.student, *_places(batch))
            head = output_head(self.student)
            student = StudentOutput(
                hidden_BTD=hidden_BTD,
                head_VD=head.weight_VD,
                bias_V=head.bias_V,
                labels_BT=batch["labels"],
                weights_BT=batch["weights"],
                scale=head.scale,
                softcap=head.softcap,
                low_rank=head.low_rank,
            )
            with torch.autocast(device, enabled=False):
                targets = self._targets(batch)  # in the teacher's own dtype, as stored targets are made
            return self.distill_loss(student, targets).total

    def _targets(self, batch: Mapping[str, Tensor]) -> TeacherTargets | None:
        teacher, states = self._teacher
        if teacher is not None:
            with torch.no_grad():
                hidden_BTD = states(*_places(batch))
            head, device = output_head(teacher), batch["input_ids"].device
            # a teacher on several devices has them elsewhere; on one, these are the tensors themselves
            return TeacherTargets(
                "live",
                hidden_BTD=hidden_BTD.to(device),
                head_VD=head.whole_weight_VD.to(device),
                bias_V=None if head.bias_V is None else head.bias_V.to(device),
                scale=head.scale,
                softcap=head.softcap,
            )
        if self.stored is not None:
            return TeacherTargets.of_batch(*self.stored, batch)
        return None


class States(nn.Module):
    """A model's hidden states as a module of their own, for the root that gathers what no block holds."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids_BT: Tensor, *places: Tensor | None) -> Tensor:
        return hidden_states(self.model, input_ids_BT, *places)


def _places(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Token ids, and the mask of a padded batch or the positions of a packed one."""
    return batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")
