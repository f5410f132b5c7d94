"""Rows of student logits against a teacher's logits on a GPU: launches `triton_dense_kernel.dense_kernel`.

C rows, V shared vocabulary.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from distill_kernels.settings import Settings
from distill_kernels.triton_dense_kernel import PARTIALS, dense_kernel
from distill_kernels.triton_softmax import LOG2_E

# Programs that keep an H200 busy, four on each of its 132 processors; fewer rows than that are split.
_BUSY_PROGRAMS = 528


def dense_rows(
    student_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor | None,
    weight_C: Tensor | None,
    settings: Settings,
    gradient_CV: Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """The loss of each row in nats, float32 `[C]`; `gradient_CV` as for `dense.dense_rows`.

    A row whose label is `ignore_index` is not read: its loss is 0 and its gradient is left as it was.
    """
    num_rows, num_tokens = student_CV.shape
    loss_C = torch.empty(num_rows, dtype=torch.float32, device=student_CV.device)
    if num_rows == 0:
        return loss_C
    matrices = [student_CV, teacher_CV] + ([] if gradient_CV is None else [gradient_CV])
    block, num_warps = tile_shape(num_tokens)
    address = address_mode(matrices)
    splits, segment_tiles = split(num_rows, num_tokens + 8 * (address == "shifted"), block)
    partials = loss_C if splits == 1 else loss_C.new_empty(num_rows * splits * PARTIALS)
    launch: Any = dense_kernel[(num_rows, splits)]
    for phase in _phases(settings.kind, splits):
        with device_of(student_CV):
            launch(
                student_CV,
                teacher_CV,
                gradient_CV if phase in ("whole", "gradient") else None,
                loss_C,
                partials,
                None if labels_C is None else labels_C.contiguous(),
                None if weight_C is None else weight_C.float().contiguous(),  # an expanded gradient has stride 0
                *(matrix.stride(axis) for axis in (0, 1) for matrix in (student_CV, teacher_CV, matrices[-1])),
                num_tokens,
                *scalars(settings),
                0 if ignore_index is None else ignore_index,
                splits,
                segment_tiles,
                PHASE=phase,
                LANES=triton.next_power_of_2(splits),
                KIND=settings.kind,
                IGNORES=ignore_index is not None and labels_C is not None,
                HARD=settings.hard_weight > 0 and labels_C is not None,
                UNIT_TEMPERATURE=settings.temperature == 1,
                STUDENT_CAPPED=settings.student_softcap is not None,
                TEACHER_CAPPED=settings.teacher_softcap is not None,
                ADDRESS=address,
                CONTIGUOUS=all(matrix.stride(1) == 1 for matrix in matrices),
                BLOCK=block,
                num_warps=num_warps,
            )
    return loss_C


def tile_shape(num_tokens: int) -> tuple[int, int]:
    """Tokens per tile and warps per program: 16 tokens a thread, few enough registers for several programs per SM."""
    return (4096, 8) if num_tokens >= 4096 else (1024, 4)


def split(num_rows: int, num_tokens: int, block: int) -> tuple[int, int]:
    """Programs per row, and tiles for each of them: one program has a whole row where rows are many."""
    num_tiles = -(-num_tokens // block)
    wanted = min(-(-_BUSY_PROGRAMS // num_rows), num_tiles, 64)
    tiles_each = -(-num_tiles // wanted)
    return -(-num_tiles // tiles_each), tiles_each


def _phases(kind: str, splits: int) -> tuple[str, ...]:
    if splits == 1:
        return ("whole",)
    return ("statistics", "gradient") if kind in ("forward_kl", "reverse_kl") else ("statistics", "sums", "gradient")


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """A launch goes to the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def scalars(settings: Settings) -> tuple[float, ...]:
    """The kernel's numbers, computed in float64 and rounded once."""
    s, temperature = settings, settings.temperature
    student_k = (s.student_softcap or s.student_scale) / temperature * LOG2_E
    teacher_k = (s.teacher_softcap or s.teacher_scale) / temperature * LOG2_E
    return (
        s.student_scale / (s.student_softcap or 1.0),
        s.teacher_scale / (s.teacher_softcap or 1.0),
        student_k,
        teacher_k,
        (s.student_softcap or s.student_scale) * LOG2_E,
        s.beta if s.kind == "jsd" else s.alpha,
        (1 - s.hard_weight) * temperature**2,
        s.hard_weight,
        (1 - s.hard_weight) * temperature * s.student_scale,
        s.hard_weight * s.student_scale,
    )


def address_mode(matrices: list[Tensor]) -> str:
    """How far the rows' addresses are known at compile time; see `triton_softmax.row_start`."""
    if any(matrix.stride(1) != 1 for matrix in matrices):
        return "any"
    if all((matrix.stride(0) * matrix.itemsize) % 16 == 0 and matrix.data_ptr() % 16 == 0 for matrix in matrices):
        return "aligned"
    starts = {(m.itemsize, m.stride(0) * m.itemsize % 16, m.data_ptr() % 16) for m in matrices}
    whole = all(matrix.data_ptr() % matrix.itemsize == 0 for matrix in matrices)
    return "shifted" if len(starts) == 1 and whole else "any"
