"""Rows of student logits against a teacher's, each held by a cluster of a GPU's processors: `resident_kernel`.

C rows, V shared vocabulary.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from distill_kernels.settings import Settings
from distill_kernels.triton_launch import device_of, scalars
from distill_kernels.triton_resident_table import Cluster


def has_clusters(device: torch.device) -> bool:
    """Whether Triton can compile clusters here and the device has them; the interpreter takes them for programs."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):  # 3.6 and 3.7 compile no reduction of a cluster
        return False
    return device.type == "cpu" or torch.cuda.get_device_capability(device)[0] >= 9


def is_ragged(matrices: list[Tensor], address: str) -> bool:
    """Whether rows begin or end inside of 16 bytes, of which their neighbours have the rest."""
    return address != "aligned" or any(matrix.shape[1] * matrix.itemsize % 16 for matrix in matrices)


def launch_clusters(
    student_CV: Tensor,
    teacher_CV: Tensor,
    gradient_CV: Tensor | None,
    loss_C: Tensor,
    labels_C: Tensor | None,
    weight_C: Tensor | None,
    settings: Settings,
    ignore_index: int | None,
    address: str,
    cluster: Cluster,
) -> None:
    """Writes the loss of each row, and the gradient where wanted; `address` as `triton_launch.address_mode` says."""
    # here, for Triton before 3.8 need not be able to read it
    from distill_kernels.triton_resident_kernel import resident_kernel

    num_tokens = student_CV.shape[1]
    matrices = [student_CV, teacher_CV, student_CV if gradient_CV is None else gradient_CV]
    kernel: Any = resident_kernel[(len(student_CV),)]
    with device_of(student_CV):
        kernel(
            student_CV,
            teacher_CV,
            gradient_CV,
            loss_C,
            None if labels_C is None else labels_C.contiguous(),
            None if weight_C is None else weight_C.float().contiguous(),  # an expanded gradient has stride 0
            *(matrix.stride(0) for matrix in matrices),
            num_tokens,
            *scalars(settings),
            0 if ignore_index is None else ignore_index,
            KIND=settings.kind,
            IGNORES=ignore_index is not None and labels_C is not None,
            HARD=settings.hard_weight > 0 and labels_C is not None,
            UNIT_TEMPERATURE=settings.temperature == 1,
            STUDENT_CAPPED=settings.student_softcap is not None,
            TEACHER_CAPPED=settings.teacher_softcap is not None,
            ADDRESS=address,
            PIECES=not is_ragged(matrices, address),
            BLOCK=cluster.tile_tokens,
            TILES=cluster.tiles,
            num_warps=cluster.num_warps,
            enable_fp_fusion=True,  # no default from Triton 3.10 on
            num_ctas=cluster.num_ctas,
        )
