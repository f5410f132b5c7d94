"""Softened: the softmax of scaled, soft-capped, tempered logits, with what the losses and their gradients need.

N rows of one block, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_kernels.columns import WHOLE, Columns, Whole

LOG2_E = 1 / math.log(2)


class Workspace:
    """Named buffers of `[rows, vocabulary]`, made once per call: fresh memory would cost more than the arithmetic."""

    def __init__(
        self, num_rows: int, num_tokens: int, dtype: torch.dtype, device: torch.device, columns: Columns = WHOLE
    ) -> None:
        self.num_rows = num_rows
        self.columns = columns
        self.dtype = dtype
        self._shape = (max(num_rows, 1), num_tokens)
        self._options = {"dtype": dtype, "device": device}
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, num_rows: int) -> Tensor:
        """The buffer of that name, `[num_rows, vocabulary]`, contents undefined."""
        if name not in self._buffers:
            self._buffers[name] = torch.empty(self._shape, **self._options)
        return self._buffers[name][:num_rows]

    def logits(self, name: str, num_rows: int, dtype: torch.dtype) -> Tensor:
        """Memory for logits of that name, `[num_rows, vocabulary]`; the first to ask asks for the most rows."""
        if name not in self._buffers:
            self._buffers[name] = logits_memory(num_rows, self._shape[1], dtype, self._options["device"])
        return self._buffers[name][:num_rows]

    def release(self) -> None:
        """Forgets all buffers."""
        self._buffers.clear()


def logits_memory(num_rows: int, num_tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[num_rows, num_tokens]`, contents undefined. On a GPU every row begins at a multiple of 128 bytes."""
    if device.type == "cpu":
        return torch.empty(num_rows, num_tokens, dtype=dtype)
    # rows that begin anywhere are multiplied and read at half the rate (V = 50257)
    return torch.empty(num_rows, -(-num_tokens // 64) * 64, dtype=dtype, device=device)[:, :num_tokens]


@dataclass(frozen=True)
class Softened:
    """A softmax kept so that nothing is lost to a large offset or a long sum.

    The log-probability is `shifted_NV - log_partition_N1`. The row's maximum is subtracted before anything is scaled
    and never added to the logarithm of the partition sum: at an offset of 1e4 their sum has three digits left.
    """

    probabilities_NV: Tensor
    shifted_NV: Tensor
    log_partition_N1: Tensor
    slope_NV: Tensor | None
    """Derivative of the capped logit by the scaled one, `1 - tanh²`; None without a soft cap."""
    columns: Columns = WHOLE


def soften(
    logits_NV: Tensor,
    scale: float,
    softcap: float | None,
    temperature: float,
    workspace: Workspace,
    name: str,
    *,
    want_slope: bool = False,
) -> Softened:
    """The softmax of `softcap * tanh(scale * logit / softcap) / temperature`, in the dtype of the workspace."""
    num_rows = logits_NV.shape[0]
    shifted_NV = workspace.take(f"{name}_shifted", num_rows).copy_(logits_NV)
    slope_NV = None
    factor = scale / temperature
    if softcap is not None:
        shifted_NV.mul_(scale / softcap).tanh_()
        if want_slope:
            slope_NV = torch.mul(shifted_NV, shifted_NV, out=workspace.take(f"{name}_slope", num_rows)).neg_().add_(1)
        factor = softcap / temperature
    columns = workspace.columns
    shifted_NV.sub_(columns.top(shifted_NV))
    if factor != 1:
        shifted_NV.mul_(factor)
    # exp2: a CPU's exp goes to MKL, which takes four times as long on AMD; softmax takes three times
    probabilities_NV = torch.mul(shifted_NV, LOG2_E, out=workspace.take(f"{name}_probabilities", num_rows)).exp2_()
    (partition_N1,) = columns.total(probabilities_NV.sum(-1, keepdim=True))
    probabilities_NV.mul_(partition_N1.reciprocal())
    return Softened(probabilities_NV, shifted_NV, partition_N1.log(), slope_NV, columns)


def block_rows(num_tokens: int, device: torch.device, columns: Columns = WHOLE) -> int:
    """Rows whose buffers stay in a CPU core's cache between the passes (1 MiB each in float32).

    Elsewhere 256 MiB each: enough to keep a GPU busy, and the four to seven of them no more than a chunk's logits.
    Processes that share a vocabulary wait for each other in every block: theirs are four times as large.
    """
    elements = 2**26 if device.type != "cpu" else 2**18 if isinstance(columns, Whole) else 2**20
    return max(1, math.floor(elements / max(num_tokens, 1)))
