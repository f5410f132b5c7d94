"""Matrix products by the fastest library that torch has for them, 16-bit ones summed in float32 where one allows it.

On a CPU `torch.mm` takes float32 to MKL, which keeps to AVX2 on a processor of AMD's: half of what its AVX-512 gives
(88 of some 200 GFLOP/s on one thread of an EPYC). oneDNN, which has the 16-bit products, takes float32 as well; torch
asks it to in compiled inference only, through an operator that plain tensors may be given to.

M, K, N: `[M, K] @ [K, N]`.
"""

from functools import cache

import torch
from torch import Tensor

# A smaller product, or one of fewer rows, is done before oneDNN has found its code for it (14 µs).
_LEAST_WORK = 2**22
_LEAST_SIDE = 8

# Rows that are added up at a time on a CPU: product and sum stay in cache. At [32000, 512], in 16 bits, the addition
# took 2.7 ms beside a product of 10.6 ms, against 22 ms in one piece.
_SLICE = 2048

# Before 2.10 a float32 sum was refused beside 16-bit products (pytorch/pytorch#167931).
_ADDMM_WIDENS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
_WIDE_SLICE = 2**14


def product(a_MK: Tensor, b_KN: Tensor, bias_N: Tensor | None = None, out_MN: Tensor | None = None) -> Tensor:
    """`a @ b + bias`, in `out_MN` where the library writes into given memory, else in its own: use what is returned.

    A GPU fills an `out_MN` of float32 from 16-bit inputs without rounding in between.
    """
    if _is_for_onednn(a_MK, b_KN):
        return torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.T, bias_N, "none", [], "")
    if out_MN is not None and out_MN.dtype != a_MK.dtype:
        _widening_mm(a_MK, b_KN, out_MN)
        return out_MN if bias_N is None else out_MN.add_(bias_N)
    if bias_N is not None:
        return torch.addmm(bias_N, a_MK, b_KN, out=out_MN)
    return torch.mm(a_MK, b_KN, out=out_MN)


def write_product(into_MN: Tensor, a_MK: Tensor, b_KN: Tensor) -> None:
    """`into = a @ b`."""
    if _is_written_into(into_MN, a_MK, b_KN):
        product(a_MK, b_KN, out_MN=into_MN)
    else:
        for part in _parts(into_MN):
            into_MN[part].copy_(product(a_MK[part], b_KN))


def add_product(into_MN: Tensor, a_MK: Tensor, b_KN: Tensor, scale: float = 1.0) -> None:
    """`into += scale * a @ b`, the sum in the dtype of `into`. A CPU rounds a 16-bit product before it is added."""
    if not _is_written_into(into_MN, a_MK, b_KN):
        for part in _parts(into_MN):
            into_MN[part].add_(product(a_MK[part], b_KN), alpha=scale)
    elif into_MN.dtype == a_MK.dtype:
        into_MN.addmm_(a_MK, b_KN, alpha=scale)
    elif _ADDMM_WIDENS:
        torch.addmm(into_MN, a_MK, b_KN, out_dtype=into_MN.dtype, alpha=scale, out=into_MN)
    else:
        for part in _parts(into_MN, _WIDE_SLICE):
            into_MN[part].add_(torch.mm(a_MK[part], b_KN, out_dtype=into_MN.dtype), alpha=scale)


def _widening_mm(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor) -> None:
    torch.mm(a_MK, b_KN, out_dtype=out_MN.dtype, out=out_MN)


def _is_written_into(into_MN: Tensor, a_MK: Tensor, b_KN: Tensor) -> bool:
    return (into_MN.dtype == a_MK.dtype or a_MK.is_cuda) and not _is_for_onednn(a_MK, b_KN)


def _parts(into_MN: Tensor, length: int = _SLICE) -> list[slice]:
    return [slice(start, start + length) for start in range(0, len(into_MN), length)]


def _is_for_onednn(a_MK: Tensor, b_KN: Tensor) -> bool:
    if a_MK.numel() * b_KN.shape[1] < _LEAST_WORK or min(a_MK.shape) < _LEAST_SIDE:
        return False
    if a_MK.dtype != torch.float32 or a_MK.device.type != "cpu" or not _has_onednn():
        return False
    # with gaps between its rows, b goes to oneDNN's reference code: a thousand times as slow
    return b_KN.is_contiguous() or b_KN.T.is_contiguous()


@cache
def _has_onednn() -> bool:
    # with AVX2 alone the two are as fast; of other processors nothing was measured
    is_wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return is_wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
