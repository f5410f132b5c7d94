"""The loop over chunks of rows: only rows that count, never more logits than one chunk. Right on any device.

N rows of which M count, C rows of one chunk, H hidden size, V shared vocabulary, K token ids per row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_kernels.autograd import Gradients
from distill_kernels.dense import dense_rows
from distill_kernels.rows import Rows
from distill_kernels.settings import Settings
from distill_kernels.softened import Workspace, block_rows
from distill_kernels.sparse import sparse_rows

# Rows of the head whose gradient is added up at a time where products are in 16 bits: the product and the float32 sum
# stay in cache. At V = 32000, H = 512 the addition took 2.7 ms beside a product of 10.6 ms, against 22 ms unsliced.
_HEAD_SLICE = 2048

# More rows make no product faster, and the logits leave the cache: V = 2048, H = 128/256, N = 2048, bfloat16 took
# 26 ms with 1024 rows and 34 ms with all of them in one chunk (one thread's time).
_CPU_CHUNK_ROWS = 1024

RowLoss = Callable[[Tensor, slice, Tensor | None, Tensor | None, Tensor | None], Tensor]
"""(logits_CV, chunk, labels_C, weight_C, gradient_CV) -> loss_C."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A language model's last step: hidden states, head and bias, and the dtype their products are taken in."""

    hidden_NH: Tensor
    head_VH: Tensor
    bias_V: Tensor | None
    product_dtype: torch.dtype

    def opened(self, num_tokens: int) -> "Projection":
        """The same, its head cut to the shared vocabulary and cast, once per call."""
        bias_V = None if self.bias_V is None else self.bias_V.detach()[:num_tokens].to(self.product_dtype)
        head_VH = self.head_VH.detach()[:num_tokens].to(self.product_dtype)
        hidden_NH, product_dtype = self.hidden_NH.detach(), self.product_dtype
        return Projection(hidden_NH=hidden_NH, head_VH=head_VH, bias_V=bias_V, product_dtype=product_dtype)

    def logits(self, hidden_CH: Tensor, out_CV: Tensor) -> Tensor:
        """The logits of rows that are in `product_dtype`, written into `out_CV`."""
        if self.bias_V is None:
            return torch.mm(hidden_CH, self.head_VH.T, out=out_CV)
        return torch.addmm(self.bias_V, hidden_CH, self.head_VH.T, out=out_CV)


@dataclass(frozen=True, kw_only=True)
class SparseTeacher:
    """A teacher that was asked before: `[N, K]` token ids with their values, the rest's last where it was told."""

    token_ids_NK: Tensor
    values: Tensor
    tail: str


@dataclass(frozen=True, kw_only=True)
class LinearCall:
    """All of one linear call that has no gradient; `evaluate` is what autograd needs of it."""

    settings: Settings
    rows: Rows
    teacher: Projection | SparseTeacher
    product_dtype: torch.dtype
    device: torch.device
    num_tokens: int
    """V, the shared prefix of the vocabularies."""
    chunk_bytes: int | None
    """None: 32 MiB and at most 1024 rows on a CPU, 2 GiB elsewhere."""

    def evaluate(
        self, students: Sequence[Tensor | None], wanted: Sequence[bool], extra_N: Tensor | None
    ) -> tuple[Tensor, Gradients]:
        """Loss of each row `[N]` and the wanted gradients by hidden states, head and bias.

        The head's gradient comes in float32 (in 16 bits if one chunk held all rows, for nothing was added up then).
        """
        hidden_NH, head_VH, bias_V = students
        assert hidden_NH is not None and head_VH is not None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            opened = Projection(
                hidden_NH=hidden_NH, head_VH=head_VH, bias_V=bias_V, product_dtype=self.product_dtype
            ).opened(self.num_tokens)
            return self._evaluate(opened, head_VH, wanted, extra_N)

    def _evaluate(
        self, student: Projection, whole_head_VH: Tensor, wanted: Sequence[bool], extra_N: Tensor | None
    ) -> tuple[Tensor, Gradients]:
        rows, device = self.rows, self.device
        work_dtype = torch.float64 if self.product_dtype == torch.float64 else torch.float32
        chunks = list(self._chunks())
        chunk_rows = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        block = min(chunk_rows, block_rows(self.num_tokens, device))
        workspace = Workspace(block, self.num_tokens, work_dtype, device)
        row_loss = self._row_loss(workspace, chunk_rows)
        logits_CV = torch.empty(chunk_rows, self.num_tokens, dtype=self.product_dtype, device=device)
        loss_M = torch.empty(rows.num_counted, dtype=work_dtype, device=device)
        gradients = _LinearGradients(student, whole_head_VH, rows.num_counted, len(chunks), wanted)
        for chunk in chunks:
            hidden_CH = rows.pick(student.hidden_NH, chunk).to(self.product_dtype)
            student_CV = student.logits(hidden_CH, logits_CV[: len(hidden_CH)])
            labels_C, weight_C = rows.labels(chunk), rows.weights(chunk, extra_N, work_dtype)
            gradient_CV = student_CV if any(wanted) else None  # written over the logits
            loss_M[chunk] = row_loss(student_CV, chunk, labels_C, weight_C, gradient_CV)
            if gradient_CV is not None:
                gradients.add(gradient_CV, hidden_CH, chunk)
        hidden_MH = gradients.hidden_MH
        hidden_NH = None if hidden_MH is None else rows.spread(hidden_MH)
        return rows.spread(loss_M), (hidden_NH, gradients.head_VH, gradients.bias_V)

    def _chunks(self) -> Iterator[slice]:
        """Equal chunks of the counted rows; the logits of one, student's and dense teacher's, fit `chunk_bytes`."""
        row_bytes = self.product_dtype.itemsize * self.num_tokens
        if isinstance(self.teacher, Projection):
            row_bytes += self.teacher.product_dtype.itemsize * self.num_tokens
        num_rows, on_cpu = self.rows.num_counted, self.device.type == "cpu"
        budget = self.chunk_bytes or (32 * 2**20 if on_cpu else 2 * 2**30)
        most_rows = max(1, budget // row_bytes)
        if self.chunk_bytes is None and on_cpu:
            most_rows = min(most_rows, _CPU_CHUNK_ROWS)
        num_chunks = -(-num_rows // most_rows)
        chunk_rows = -(-num_rows // max(num_chunks, 1))
        for start in range(0, num_rows, max(chunk_rows, 1)):
            yield slice(start, min(start + chunk_rows, num_rows))

    def _row_loss(self, workspace: Workspace, chunk_rows: int) -> RowLoss:
        rows, teacher, settings = self.rows, self.teacher, self.settings
        if isinstance(teacher, SparseTeacher):

            def sparse(logits_CV, chunk, labels_C, weight_C, gradient_CV):
                ids_CK, values = rows.pick(teacher.token_ids_NK, chunk), rows.pick(teacher.values, chunk)
                rest = (teacher.tail, labels_C, weight_C, settings, workspace, gradient_CV)
                return sparse_rows(logits_CV, ids_CK, values, *rest)

            return sparse

        opened = teacher.opened(self.num_tokens)
        buffer_CV = torch.empty(chunk_rows, self.num_tokens, dtype=teacher.product_dtype, device=self.device)

        def dense(logits_CV, chunk, labels_C, weight_C, gradient_CV):
            hidden_CH = rows.pick(opened.hidden_NH, chunk).to(opened.product_dtype)
            teacher_CV = opened.logits(hidden_CH, buffer_CV[: len(hidden_CH)])
            return dense_rows(logits_CV, teacher_CV, labels_C, weight_C, settings, workspace, gradient_CV)

        return dense


class _LinearGradients:
    """Collects the wanted gradients chunk by chunk; what is not wanted is neither computed nor allocated."""

    def __init__(
        self, student: Projection, head_VH: Tensor, num_counted: int, num_chunks: int, wanted: Sequence[bool]
    ) -> None:
        want_hidden, want_head, want_bias = wanted
        half = student.product_dtype.itemsize == 2
        sum_dtype = torch.float32 if half else student.product_dtype
        # one chunk: nothing is added up, so the product's own 16 bits are all there is
        head_dtype = student.product_dtype if num_chunks == 1 else sum_dtype
        device, product_dtype = head_VH.device, student.product_dtype
        self._student, self._first = student, True
        self.hidden_MH = self.head_VH = self.bias_V = None
        if want_hidden:
            self.hidden_MH = torch.empty(num_counted, head_VH.shape[1], dtype=product_dtype, device=device)
        if want_head:
            self.head_VH = torch.zeros(head_VH.shape, dtype=head_dtype, device=device)
        if want_bias:
            self.bias_V = torch.zeros(head_VH.shape[0], dtype=sum_dtype, device=device)

    def add(self, gradient_CV: Tensor, hidden_CH: Tensor, chunk: slice) -> None:
        """Adds what one chunk's derivative by its logits says about hidden states, head and bias."""
        num_tokens = gradient_CV.shape[1]
        if self.hidden_MH is not None:
            torch.mm(gradient_CV, self._student.head_VH, out=self.hidden_MH[chunk])
        if self.bias_V is not None:
            self.bias_V[:num_tokens] += gradient_CV.sum(0, dtype=self.bias_V.dtype)
        if self.head_VH is None:
            return
        head_VH = self.head_VH[:num_tokens]
        if head_VH.dtype != gradient_CV.dtype:
            for start in range(0, num_tokens, _HEAD_SLICE):
                part = slice(start, start + _HEAD_SLICE)
                head_VH[part] += torch.mm(gradient_CV[:, part].T, hidden_CH)
        elif self._first:
            torch.mm(gradient_CV.T, hidden_CH, out=head_VH)
        else:
            head_VH.addmm_(gradient_CV.T, hidden_CH)
        self._first = False
