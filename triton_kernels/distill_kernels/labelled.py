"""The label's part of a row's loss, and the way from the gradient of the softmax back to the raw logits.

    loss = (1 - hard_weight) * temperature² * D + hard_weight * CE, times the row's weight

CE is at temperature 1 whatever the divergence's temperature is. N rows of one block, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill_kernels.settings import Settings
from distill_kernels.softened import Softened, Workspace, soften


@dataclass(frozen=True)
class Labelled:
    """Cross-entropy of each row with its label, and the probabilities its gradient is made of."""

    loss_N: Tensor
    probabilities_NV: Tensor
    labels_N1: Tensor


def cross_entropy(
    student: Softened, logits_NV: Tensor, labels_N: Tensor, settings: Settings, workspace: Workspace
) -> Labelled:
    """Cross-entropy in nats of each row at temperature 1; `student` is used again where it is at temperature 1."""
    kept_NV = workspace.take("labelled_kept", len(labels_N))
    if settings.temperature == 1:
        kept_NV.copy_(student.probabilities_NV)  # the closed form writes over the original
        untempered = student
    else:
        scale, softcap = settings.student_scale, settings.student_softcap
        untempered = soften(logits_NV, scale, softcap, 1.0, workspace, "labelled")
        kept_NV = untempered.probabilities_NV
    labels_N1 = labels_N.unsqueeze(-1)
    loss_N1 = untempered.log_partition_N1 - untempered.columns.take(untempered.shifted_NV, labels_N1)
    return Labelled(loss_N1.squeeze(-1), kept_NV, labels_N1)


def mixed_loss(loss_N: Tensor, labelled: Labelled | None, weight_N: Tensor | None, settings: Settings) -> Tensor:
    """The divergence's loss with temperature², the label's part and the row's weight."""
    scale = (1 - settings.hard_weight) * settings.temperature**2
    if scale != 1:
        loss_N = loss_N * scale
    if labelled is not None:
        loss_N = loss_N + settings.hard_weight * labelled.loss_N
    return loss_N if weight_N is None else loss_N * weight_N


def mixed_gradient(
    gradient_NV: Tensor, student: Softened, labelled: Labelled | None, weight_N: Tensor | None, settings: Settings
) -> Tensor:
    """The derivative of `mixed_loss` by the raw logits, in place, from that of the divergence by the softmax's input.

    temperature² of the loss times 1 / temperature of the chain leaves one temperature.
    """
    scale = (1 - settings.hard_weight) * settings.temperature
    if labelled is not None:
        if scale != 1:
            gradient_NV.mul_(scale)
        gradient_NV.add_(labelled.probabilities_NV, alpha=settings.hard_weight)
        ones_N1 = torch.ones_like(labelled.labels_N1, dtype=gradient_NV.dtype)
        student.columns.add_(gradient_NV, labelled.labels_N1, ones_N1.mul_(-settings.hard_weight))
        scale = 1.0
    scale *= settings.student_scale
    if weight_N is not None:
        gradient_NV.mul_((weight_N * scale).unsqueeze(-1))
    elif scale != 1:
        gradient_NV.mul_(scale)
    return gradient_NV if student.slope_NV is None else gradient_NV.mul_(student.slope_NV)
