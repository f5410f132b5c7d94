"""Loss and gradient of rows of student logits against a teacher's logits.

C rows of one chunk, V shared vocabulary. A chunk is worked on in blocks that stay in cache between the passes.
"""

import math

import torch
from torch import Tensor

from distill_kernels.closed_forms import FORMS
from distill_kernels.implementation import runs_triton
from distill_kernels.labelled import cross_entropy, mixed_gradient, mixed_loss
from distill_kernels.settings import Settings
from distill_kernels.softened import Workspace, soften


def dense_rows(
    student_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor | None,
    weight_C: Tensor | None,
    settings: Settings,
    workspace: Workspace,
    gradient_CV: Tensor | None = None,
) -> Tensor:
    """The loss of each row in nats, `[C]`, in the dtype of the workspace.

    `gradient_CV`, if given, receives the derivative by the raw student logits in its own dtype. It may be
    `student_CV` itself: a block is read before it is written.
    """
    if runs_triton(student_CV):
        from distill_kernels import triton_dense

        rows = (student_CV, teacher_CV, labels_C, weight_C)
        return triton_dense.dense_rows(*rows, settings, gradient_CV, columns=workspace.columns)
    loss_C = torch.empty(len(student_CV), dtype=workspace.dtype, device=student_CV.device)
    for start in range(0, len(student_CV), workspace.num_rows):
        block = slice(start, start + workspace.num_rows)
        labels_N, weight_N = (None if rows is None else rows[block] for rows in (labels_C, weight_C))
        gradient_NV = None if gradient_CV is None else gradient_CV[block]
        arguments = (student_CV[block], teacher_CV[block], labels_N, weight_N, settings, workspace, gradient_NV)
        loss_C[block] = _dense_block(*arguments)
    return loss_C


def _dense_block(
    student_NV: Tensor,
    teacher_NV: Tensor,
    labels_N: Tensor | None,
    weight_N: Tensor | None,
    settings: Settings,
    workspace: Workspace,
    gradient_NV: Tensor | None,
) -> Tensor:
    # A logit of -inf makes 0 * inf = NaN unless it is guarded, and guarding costs passes. On a CPU, looking at the
    # losses is cheap: guard only what came out non-finite. Elsewhere looking would be a synchronisation. Processes that
    # share a vocabulary have the same losses to the bit, and so guard the same blocks.
    for guarded in (False, True) if student_NV.device.type == "cpu" else (True,):
        want_slope = gradient_NV is not None
        student = soften(
            student_NV,
            settings.student_scale,
            settings.student_softcap,
            settings.temperature,
            workspace,
            "student",
            want_slope=want_slope,
        )
        teacher = soften(
            teacher_NV, settings.teacher_scale, settings.teacher_softcap, settings.temperature, workspace, "teacher"
        )
        labelled = None
        if labels_N is not None and settings.hard_weight > 0:
            labelled = cross_entropy(student, student_NV, labels_N, settings, workspace)
        ratio_NV = teacher.shifted_NV.sub_(student.shifted_NV)
        ratio_NV.add_(student.log_partition_N1 - teacher.log_partition_N1)
        form = FORMS[settings.kind]
        q_NV, p_NV, total = student.probabilities_NV, teacher.probabilities_NV, workspace.columns.total
        loss_N, by_softmax_NV = form(q_NV, p_NV, ratio_NV, settings, guarded, total)
        if guarded:  # guarding must not hide a NaN that was there before
            loss_N = loss_N + 0.0 * (student.log_partition_N1 + teacher.log_partition_N1).squeeze(-1)
        loss_N = mixed_loss(loss_N, labelled, weight_N, settings)
        if guarded or math.isfinite(loss_N.sum().item()):
            break
    if gradient_NV is not None:
        gradient_NV.copy_(mixed_gradient(by_softmax_NV, student, labelled, weight_N, settings))
    return loss_N
