"""evaluate_with_gradient: makes a loss that knows its own derivative a node of torch's graph.

A sum takes its gradients in forward, while the logits are in cache; backward scales them and gives them away. Where the
graph is retained and walked again, and for a loss per row, which does not know its incoming gradients in forward, the
inputs are evaluated again in backward, with these as weights.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_kernels.implementation import runs_triton
from distill_kernels.kept import put_back, taken_out

Gradients = tuple[Tensor | None, ...]

_SLICE_ELEMENTS = 2**19


class Call(Protocol):
    """A dataclass that holds all of a call but the student."""

    def evaluate(
        self, students: Sequence[Tensor | None], wanted: Sequence[bool], extra_N: Tensor | None
    ) -> tuple[Tensor, Gradients]:
        """Loss of each row and the wanted gradients; `extra_N` are weights of the rows beside the call's own."""
        ...


def evaluate_with_gradient(call: Call, reduction: str, students: Sequence[Tensor | None]) -> Tensor:
    """The loss, a scalar for reduction "sum" and `[N]` for "none", attached to the graph of `students`.

    Nothing is done for gradients where none can be asked for: under no_grad, or with every tensor frozen.

    Backward raises RuntimeError, as autograd's own operators do, where it reads again what was changed in place since.
    """
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in students):
        return _Loss.apply(call, reduction, *students)
    loss_N, _ = call.evaluate(students, [False] * len(students), None)
    return total(loss_N) if reduction == "sum" else loss_N


def total(loss_N: Tensor) -> Tensor:
    # float64: the sum is then the same for any split of the rows
    return loss_N.sum(dtype=torch.float64).to(loss_N.dtype)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, reduction: str, *students: Tensor | None) -> Tensor:
        wanted = ctx.needs_input_grad[2:]
        kept: list[Tensor] = []
        ctx.call, ctx.reduction, ctx.wanted = taken_out(call, kept), reduction, wanted
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in students]
        ctx.save_for_backward(*students, *kept)
        if reduction == "none":
            ctx.gradients = None
            return call.evaluate(students, [False] * len(students), None)[0]
        loss_N, ctx.gradients = call.evaluate(students, wanted, None)
        ctx.num_rows = len(loss_N)
        return total(loss_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = incoming
        taken, ctx.gradients = ctx.gradients, None
        if taken is not None:
            pairs = zip(taken, ctx.dtypes, strict=True)
            return None, None, *(_scaled_away(gradient, upstream, dtype) for gradient, dtype in pairs)
        upstream_N = upstream.expand(ctx.num_rows) if ctx.reduction == "sum" else upstream
        saved, num_students = ctx.saved_tensors, len(ctx.wanted)
        call = put_back(ctx.call, saved[num_students:])
        _, gradients = call.evaluate(saved[:num_students], ctx.wanted, upstream_N)
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return None, None, *(None if gradient is None else gradient.to(dtype) for gradient, dtype in pairs)


def _scaled_away(gradient: Tensor | None, upstream: Tensor, dtype: torch.dtype) -> Tensor | None:
    """`scaled` of a gradient that nobody needs after this: in its own memory, if its dtype is the parameter's."""
    if gradient is None or gradient.dtype != dtype:
        return scaled(gradient, upstream, dtype)
    if gradient.is_contiguous() and runs_triton(gradient):
        from distill_kernels.triton_scale import scale_

        return scale_(gradient, upstream)
    return gradient.mul_(upstream)


def scaled(gradient: Tensor | None, upstream: Tensor, dtype: torch.dtype) -> Tensor | None:
    """`gradient * upstream` in the dtype of its parameter, without a second buffer of the gradient's own dtype."""
    if gradient is None:
        return None
    if gradient.dtype == dtype or gradient.numel() <= _SLICE_ELEMENTS:
        return (gradient * upstream).to(dtype)
    scaled = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    if gradient.is_cuda:  # rounds as it writes, which a CPU does in a copy of the whole
        return torch.mul(gradient, upstream.detach(), out=scaled)
    rows = max(1, _SLICE_ELEMENTS * gradient.shape[0] // gradient.numel())
    for part, target in zip(gradient.split(rows), scaled.split(rows), strict=True):
        target.copy_(part * upstream)
    return scaled
