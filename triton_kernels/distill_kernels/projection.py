"""Projection: a language model's last step, and what its gradient by the logits says about each of its tensors.

C rows of one chunk of M that count, G rows of a group of chunks, H hidden size, V tokens held here of the shared
vocabulary, r rank of an update.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill_kernels.autograd import Gradients
from distill_kernels.columns import Columns
from distill_kernels.products import add_product, product, write_product
from distill_kernels.student import Student


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """`scale * B @ A`, to be added to a head."""

    A_rH: Tensor
    B_Vr: Tensor
    scale: float


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Hidden states, head and bias, and the dtype their products are taken in."""

    hidden_NH: Tensor
    head_VH: Tensor
    bias_V: Tensor | None
    product_dtype: torch.dtype
    update: LowRank | None = None

    @staticmethod
    def of(student: Student, product_dtype: torch.dtype) -> "Projection":
        """A student's, its hidden states `[N, H]`."""
        update = None
        if student.lora_A is not None and student.lora_B is not None:
            update = LowRank(A_rH=student.lora_A, B_Vr=student.lora_B, scale=student.lora_scale)
        tensors = {"hidden_NH": student.hidden, "head_VH": student.head, "bias_V": student.bias}
        return Projection(**tensors, product_dtype=product_dtype, update=update)

    def opened(self, num_tokens: int) -> "Projection":
        """The same, its head cut to the shared vocabulary and cast, once per call."""
        dtype, update = self.product_dtype, self.update
        if update is not None:
            B_Vr = update.B_Vr.detach()[:num_tokens].to(dtype)
            update = replace(update, A_rH=update.A_rH.detach().to(dtype), B_Vr=B_Vr)
        return Projection(
            hidden_NH=self.hidden_NH.detach(),
            head_VH=self.head_VH.detach()[:num_tokens].to(dtype),
            bias_V=None if self.bias_V is None else self.bias_V.detach()[:num_tokens].to(dtype),
            product_dtype=dtype,
            update=update,
        )

    @property
    def logits_dtype(self) -> torch.dtype:
        """float32 where a GPU takes products in 16 bits: a small divergence would drown in rounded logits."""
        return torch.float32 if self.head_VH.is_cuda and self.product_dtype.itemsize == 2 else self.product_dtype

    def logits(self, hidden_CH: Tensor, out_CV: Tensor) -> Tensor:
        """The logits of rows that are in `product_dtype`; `out_CV`, in `logits_dtype`, is memory for them."""
        logits_CV = product(hidden_CH, self.head_VH.T, self.bias_V, out_CV)
        if self.update is not None:
            low_Cr = torch.mm(hidden_CH, self.update.A_rH.T)
            add_product(logits_CV, low_Cr, self.update.B_Vr.T, self.update.scale)
        return logits_CV


def ends_in_16_bits(head_dtype: torch.dtype | None, product_dtype: torch.dtype) -> bool:
    """Whether a head's gradient that is one product may be kept in the product's 16 bits.

    Not in float16, which ends at 65,504: a sum over all rows is divided by their number in backward only.
    """
    return head_dtype == product_dtype == torch.bfloat16


class StudentGradients:
    """Collects the wanted gradients group by group; what is not wanted is neither computed nor allocated."""

    def __init__(
        self, opened: Projection, student: Student, num_counted: int, num_groups: int, wanted: Sequence[bool]
    ) -> None:
        want_hidden, self._want_head, want_bias, self._want_A, self._want_B = wanted
        dtype, device = opened.product_dtype, student.head.device
        sum_dtype = torch.float32 if dtype.itemsize == 2 else dtype
        # one group: nothing is added up, so the product's own 16 bits do for a head of 16 bits
        self._head_dtype = dtype if num_groups == 1 and ends_in_16_bits(student.head.dtype, dtype) else sum_dtype
        self._opened, self._student = opened, student
        self.hidden_MH = self.head_VH = self.bias_V = self.A_rH = self.B_Vr = None
        if want_hidden:
            self.hidden_MH = torch.empty(num_counted, student.head.shape[1], dtype=dtype, device=device)
        if want_bias:
            self.bias_V = torch.zeros(student.head.shape[0], dtype=sum_dtype, device=device)
        if self._want_A and student.lora_A is not None:
            self.A_rH = torch.zeros(student.lora_A.shape, dtype=sum_dtype, device=device)
        if self._want_B and student.lora_B is not None:
            self.B_Vr = torch.zeros(student.lora_B.shape, dtype=sum_dtype, device=device)

    def add(self, gradient_GV: Tensor, hidden_GH: Tensor, group: slice) -> None:
        """Adds what one group's derivative by its logits says about each tensor."""
        num_tokens = gradient_GV.shape[1]
        if self.hidden_MH is not None:
            write_product(self.hidden_MH[group], gradient_GV, self._opened.head_VH)
        if self.bias_V is not None:
            self.bias_V[:num_tokens] += gradient_GV.sum(0, dtype=self.bias_V.dtype)
        if self._opened.update is not None:
            self._add_update(gradient_GV, hidden_GH, group, self._opened.update)
        if self.head_VH is not None:
            add_product(self.head_VH[:num_tokens], gradient_GV.T, hidden_GH)
        elif self._want_head:
            self.head_VH = self._head_memory(written=num_tokens)
            write_product(self.head_VH[:num_tokens], gradient_GV.T, hidden_GH)

    def _head_memory(self, written: int) -> Tensor:
        """For the head's gradient, zero beyond the tokens that will be written."""
        head = self._student.head
        memory_VH = torch.empty(head.shape, dtype=self._head_dtype, device=head.device)
        if written < len(memory_VH):
            memory_VH[written:].zero_()
        return memory_VH

    def _add_update(self, gradient_GV: Tensor, hidden_GH: Tensor, group: slice, update: LowRank) -> None:
        if self.B_Vr is not None:
            low_Gr = torch.mm(hidden_GH, update.A_rH.T)
            self.B_Vr[: gradient_GV.shape[1]].add_(torch.mm(gradient_GV.T, low_Gr), alpha=update.scale)
        if self.hidden_MH is None and self.A_rH is None:
            return
        by_low_Gr = torch.mm(gradient_GV, update.B_Vr)
        if self.hidden_MH is not None:
            self.hidden_MH[group].addmm_(by_low_Gr, update.A_rH, alpha=update.scale)
        if self.A_rH is not None:
            self.A_rH.add_(torch.mm(by_low_Gr.T, hidden_GH), alpha=update.scale)

    def of_all(self, columns: Columns) -> Gradients:
        """By hidden states `[M, H]`, head, bias, lora_A, lora_B.

        The first and fourth are sums over the vocabulary; the others belong to the tokens held here.
        """
        if self._want_head and self.head_VH is None:  # no row counts
            self.head_VH = self._head_memory(written=0)
        columns.add_up(self.hidden_MH)
        columns.add_up(self.A_rH)
        return self.hidden_MH, self.head_VH, self.bias_V, self.A_rH, self.B_Vr
