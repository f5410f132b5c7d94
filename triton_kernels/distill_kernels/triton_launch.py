"""What the launches of the row kernels have in common: tiles, numbers, addresses, the device."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from distill_kernels.settings import Settings
from distill_kernels.triton_softmax import LOG2_E


def tile_shape(num_tokens: int) -> tuple[int, int]:
    """Tokens per tile and warps per program: 16 tokens a thread, few enough registers for several programs per SM."""
    return (4096, 8) if num_tokens >= 4096 else (1024, 4)


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
