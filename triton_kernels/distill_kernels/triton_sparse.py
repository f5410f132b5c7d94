"""Rows of student logits against K token ids per row on a GPU: launches `triton_sparse_kernel.sparse_kernel`.

C rows, V vocabulary, K ids per row (-1 pads).
"""

from typing import Any

import torch
import triton
from torch import Tensor

from distill_kernels.settings import Settings
from distill_kernels.triton_launch import address_mode, device_of, scalars, tile_shape
from distill_kernels.triton_sparse_kernel import sparse_kernel

MOST_IDS = 2048


def sparse_rows(
    student_CV: Tensor,
    token_ids_CK: Tensor,
    values: Tensor,
    tail: str,
    labels_C: Tensor | None,
    weight_C: Tensor | None,
    settings: Settings,
    gradient_CV: Tensor | None = None,
) -> Tensor:
    """The loss of each row in nats, float32 `[C]`. `student_CV` is overwritten, by the gradient or by marks.

    `values` are `[C, K]`, or for the tail "bucket" `[C, K + 1]` where the last is the rest's log-probability.
    """
    (num_rows, num_tokens), num_ids = student_CV.shape, token_ids_CK.shape[1]
    if num_ids >= MOST_IDS:  # its lanes would not fit into registers
        raise ValueError(
            f"token_ids: found {num_ids} ids per row; needed fewer than {MOST_IDS} with DISTILL_KERNELS=triton. "
            f"Unset DISTILL_KERNELS, or keep fewer ids."
        )
    assert student_CV.stride(1) == 1
    loss_C = torch.empty(num_rows, dtype=torch.float32, device=student_CV.device)
    if num_rows == 0:
        return loss_C
    matrices = [student_CV] + ([] if gradient_CV is None else [gradient_CV])
    block, num_warps = tile_shape(num_tokens)
    student_factor, _, student_k, _, hard_k, weight, loss_scale, hard_weight, gradient_scale, hard_scale = scalars(
        settings
    )
    launch: Any = sparse_kernel[(num_rows,)]
    with device_of(student_CV):
        launch(
            student_CV,
            gradient_CV,
            token_ids_CK,
            values,
            loss_C,
            None if labels_C is None else labels_C.contiguous(),
            None if weight_C is None else weight_C.float().contiguous(),  # an expanded gradient has stride 0
            student_CV.stride(0),
            matrices[-1].stride(0),
            *token_ids_CK.stride(),
            *values.stride(),
            num_tokens,
            num_ids,
            student_factor,
            student_k,
            hard_k,
            weight,
            loss_scale,
            hard_weight,
            gradient_scale,
            hard_scale,
            KIND=settings.kind,
            TAIL=tail,
            REST_TOLD=values.shape[1] > num_ids,
            HARD=settings.hard_weight > 0 and labels_C is not None,
            CAPPED=settings.student_softcap is not None,
            ADDRESS=address_mode(matrices),
            BLOCK=block,
            IDS=max(16, triton.next_power_of_2(num_ids + (tail == "bucket"))),
            num_warps=num_warps,
            enable_fp_fusion=True,  # no default from Triton 3.10 on
        )
    return loss_C
