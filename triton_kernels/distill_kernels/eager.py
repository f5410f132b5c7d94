"""The loop over chunks of rows: only rows that count, never more logits than one chunk. Right on any device.

N rows of which M count, C rows of one chunk, H hidden size, V shared vocabulary, K token ids per row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_kernels.autograd import Gradients
from distill_kernels.columns import WHOLE, Columns
from distill_kernels.dense import dense_rows
from distill_kernels.projection import Projection, StudentGradients
from distill_kernels.rows import Rows
from distill_kernels.settings import Settings
from distill_kernels.softened import Workspace, block_rows
from distill_kernels.sparse import sparse_rows
from distill_kernels.student import Student

# More rows make no product faster, and the logits leave the cache: V = 2048, H = 128/256, N = 2048, bfloat16 took
# 26 ms with 1024 rows and 34 ms with all of them in one chunk (one thread's time).
_CPU_CHUNK_ROWS = 1024

RowLoss = Callable[[Tensor, slice, Tensor | None, Tensor | None, Tensor | None], Tensor]
"""(logits_CV, chunk, labels_C, weight_C, gradient_CV) -> loss_C."""


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
    """V, the shared prefix of the vocabularies, or the part of it that is held here."""
    chunk_bytes: int | None
    """None: 32 MiB and at most 1024 rows on a CPU, 2 GiB elsewhere."""
    columns: Columns = WHOLE
    lora_scale: float = 1.0
    """Of the update of the student's head, if it has one."""

    def evaluate(
        self, students: Sequence[Tensor | None], wanted: Sequence[bool], extra_N: Tensor | None
    ) -> tuple[Tensor, Gradients]:
        """Loss of each row `[N]` and the wanted gradients, both in the order of `Student.tensors`.

        The head's gradient comes in float32 (in 16 bits if one chunk held all rows, for nothing was added up then).
        """
        student = Student.from_tensors(students, self.lora_scale)
        with torch.autocast(self.device.type, enabled=False):
            return self._evaluate(student, wanted, extra_N)

    def _evaluate(self, student: Student, wanted: Sequence[bool], extra_N: Tensor | None) -> tuple[Tensor, Gradients]:
        rows, device, num_tokens = self.rows, self.device, self.num_tokens
        opened = Projection.of(student, self.product_dtype).opened(num_tokens)
        work_dtype = torch.float64 if self.product_dtype == torch.float64 else torch.float32
        chunks = list(self._chunks(opened, any(wanted)))
        chunk_rows = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        block = min(chunk_rows, block_rows(self.columns.widest(num_tokens), device, self.columns))
        workspace = Workspace(block, num_tokens, work_dtype, device, self.columns)
        row_loss = self._row_loss(workspace, chunk_rows)
        logits_CV = logits_memory(chunk_rows, num_tokens, opened.logits_dtype, device)
        # rounded for the products that follow; otherwise written over the logits
        rounded_CV = None
        if any(wanted) and opened.logits_dtype != self.product_dtype:
            rounded_CV = logits_memory(chunk_rows, num_tokens, self.product_dtype, device)
        loss_M = torch.empty(rows.num_counted, dtype=work_dtype, device=device)
        gradients = StudentGradients(opened, student, rows.num_counted, len(chunks), wanted)
        for chunk in chunks:
            hidden_CH = rows.pick(opened.hidden_NH, chunk).to(self.product_dtype)
            student_CV = opened.logits(hidden_CH, logits_CV[: len(hidden_CH)])
            labels_C, weight_C = rows.labels(chunk), rows.weights(chunk, extra_N, work_dtype)
            gradient_CV = None
            if any(wanted):
                gradient_CV = student_CV if rounded_CV is None else rounded_CV[: len(hidden_CH)]
            loss_M[chunk] = rows.blanked(row_loss(student_CV, chunk, labels_C, weight_C, gradient_CV), chunk)
            if gradient_CV is not None:
                gradients.add(rows.blank_(gradient_CV, chunk), hidden_CH, chunk)
        hidden_MH, *others = gradients.of_all(self.columns)
        hidden_NH = None if hidden_MH is None else rows.spread(hidden_MH)
        return rows.spread(loss_M), (hidden_NH, *others)

    def _chunks(self, opened: Projection, with_gradient: bool) -> Iterator[slice]:
        """Equal chunks of the counted rows; one's logits, student's and dense teacher's, and gradient fit the bytes."""
        token_bytes = opened.logits_dtype.itemsize
        if with_gradient and opened.logits_dtype != self.product_dtype:
            token_bytes += self.product_dtype.itemsize
        if isinstance(self.teacher, Projection):
            token_bytes += self.teacher.logits_dtype.itemsize
        # processes that share a vocabulary take the same chunks
        row_bytes = token_bytes * max(1, self.columns.widest(self.num_tokens))
        num_rows, on_cpu = self.rows.num_counted, self.device.type == "cpu"
        budget = self.chunk_bytes or (32 * 2**20 if on_cpu else 2 * 2**30)
        most_rows = max(1, budget // row_bytes)
        if self.chunk_bytes is None and on_cpu:
            most_rows = min(most_rows, _CPU_CHUNK_ROWS)
        num_chunks = -(-num_rows // most_rows)
        chunk_rows = -(-num_rows // max(num_chunks, 1))
        if not on_cpu:  # whose products work on 128 rows at a time
            chunk_rows = min(-(-chunk_rows // 128) * 128, most_rows)
        for start in range(0, num_rows, max(chunk_rows, 1)):
            yield slice(start, min(start + chunk_rows, num_rows))

    def _row_loss(self, workspace: Workspace, chunk_rows: int) -> RowLoss:
        rows, teacher, settings = self.rows, self.teacher, self.settings
        if isinstance(teacher, SparseTeacher):

            def sparse(logits_CV, chunk, labels_C, weight_C, gradient_CV):
                ids_CK, values = rows.pick(teacher.token_ids_NK, chunk, blank=-1), rows.pick(teacher.values, chunk)
                rest = (teacher.tail, labels_C, weight_C, settings, workspace, gradient_CV)
                return sparse_rows(logits_CV, ids_CK, values, *rest)

            return sparse

        opened = teacher.opened(self.num_tokens)
        buffer_CV = logits_memory(chunk_rows, self.num_tokens, teacher.logits_dtype, self.device)

        def dense(logits_CV, chunk, labels_C, weight_C, gradient_CV):
            hidden_CH = rows.pick(opened.hidden_NH, chunk).to(opened.product_dtype)
            teacher_CV = opened.logits(hidden_CH, buffer_CV[: len(hidden_CH)])
            return dense_rows(logits_CV, teacher_CV, labels_C, weight_C, settings, workspace, gradient_CV)

        return dense


def logits_memory(num_rows: int, num_tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[num_rows, num_tokens]`, contents undefined. On a GPU every row begins at a multiple of 128 bytes."""
    if device.type == "cpu":
        return torch.empty(num_rows, num_tokens, dtype=dtype)
    # rows that begin anywhere are multiplied and read at half the rate (V = 50257)
    return torch.empty(num_rows, -(-num_tokens // 64) * 64, dtype=dtype, device=device)[:, :num_tokens]
