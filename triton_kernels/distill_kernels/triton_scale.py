"""Multiplies a gradient by the one that comes in, in place; a loss that is differentiated itself comes with 1."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill_kernels.triton_launch import device_of

_BLOCK = 4096
# Eight for each of an H200's processors: programs that find a 1 and end, one for each block, would take 0.1 ms.
_PROGRAMS = 1056


def scale_(gradient: Tensor, factor: Tensor) -> Tensor:
    """`gradient *= factor`, a contiguous tensor by a number on its device; nothing is read or written if it is 1."""
    if gradient.numel():
        launch: Any = _scale_kernel[(min(triton.cdiv(gradient.numel(), _BLOCK), _PROGRAMS),)]
        with device_of(gradient):
            by = factor.to(torch.float32)
            launch(gradient, by, gradient.numel(), BLOCK=_BLOCK, num_warps=8, enable_fp_fusion=True)
    return gradient


@triton.jit
def _scale_kernel(values, factor, size, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by == 1.0:
        return
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for _ in range(tl.cdiv(size, step)):
        inside = at < size
        scaled = tl.load(values + at, mask=inside, other=0.0).to(tl.float32) * by
        tl.store(values + at, scaled.to(values.dtype.element_ty), mask=inside)
        at += step
