"""The loop over chunks of rows: only rows that count, never more logits than one chunk. Right on any device.

The gradient by the logits may be kept for several chunks, in 16 bits (see chunks.py).

N rows of which M count, G rows of a group of chunks, C rows of one chunk, H hidden size, V shared vocabulary, K token
ids per row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_kernels.autograd import Gradients
from distill_kernels.chunks import Chunks, choose_chunks
from distill_kernels.columns import WHOLE, Columns
from distill_kernels.dense import dense_rows
from distill_kernels.projection import Projection, StudentGradients
from distill_kernels.rows import Rows
from distill_kernels.settings import Settings
from distill_kernels.softened import Workspace, block_rows
from distill_kernels.sparse import sparse_rows
from distill_kernels.student import Student

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
    """See `choose_chunks`."""
    columns: Columns = WHOLE
    lora_scale: float = 1.0
    """Of the update of the student's head, if it has one."""

    def evaluate(
        self, students: Sequence[Tensor | None], wanted: Sequence[bool], extra_N: Tensor | None
    ) -> tuple[Tensor, Gradients]:
        """Loss of each row `[N]` and the wanted gradients, both in the order of `Student.tensors`.

        The head's gradient comes in float32 (in 16 bits if one group held all rows, for nothing was added up then).
        """
        student = Student.from_tensors(students, self.lora_scale)
        with torch.autocast(self.device.type, enabled=False):
            return self._evaluate(student, wanted, extra_N)

    def _evaluate(self, student: Student, wanted: Sequence[bool], extra_N: Tensor | None) -> tuple[Tensor, Gradients]:
        rows, device, num_tokens = self.rows, self.device, self.num_tokens
        opened = Projection.of(student, self.product_dtype).opened(num_tokens)
        work_dtype = torch.float64 if self.product_dtype == torch.float64 else torch.float32
        chunks = self._chunks(opened, student, wanted)
        block = min(chunks.chunk_rows, block_rows(self.columns.widest(num_tokens), device, self.columns))
        workspace = Workspace(block, num_tokens, work_dtype, device, self.columns)
        row_loss = self._row_loss(workspace)
        loss_M = torch.empty(rows.num_counted, dtype=work_dtype, device=device)
        gradients = StudentGradients(opened, student, rows.num_counted, chunks.num_groups, wanted)
        # rounded for the products that follow; otherwise written over the logits
        is_rounded = opened.logits_dtype != self.product_dtype

        def losses(group: slice, hidden_GH: Tensor) -> Tensor | None:
            """Fills `loss_M`; the derivative by the group's logits, `[G, V]`, if it is wanted."""
            whole_GV = gradient_CV = None
            if any(wanted) and (is_rounded or chunks.chunk_rows < len(hidden_GH)):
                whole_GV = workspace.logits("gradient", len(hidden_GH), self.product_dtype)
            for chunk in chunks.chunks_of(group):
                part = slice(chunk.start - group.start, chunk.stop - group.start)
                hidden_CH, gradient_CV = hidden_GH[part], None if whole_GV is None else whole_GV[part]
                memory_CV = gradient_CV
                if memory_CV is None or is_rounded:
                    memory_CV = workspace.logits("student's logits", len(hidden_CH), opened.logits_dtype)
                student_CV = opened.logits(hidden_CH, memory_CV)
                if any(wanted) and gradient_CV is None:
                    gradient_CV = student_CV
                labels_C, weight_C = rows.labels(chunk), rows.weights(chunk, extra_N, work_dtype)
                loss_M[chunk] = rows.blanked(row_loss(student_CV, chunk, labels_C, weight_C, gradient_CV), chunk)
            return gradient_CV if whole_GV is None else whole_GV

        for group in chunks.groups():
            hidden_GH = rows.pick(opened.hidden_NH, group).to(self.product_dtype)
            gradient_GV = losses(group, hidden_GH)
            if group.stop == chunks.num_rows:
                workspace.release()  # before the products; where there is one group, before the head's gradient is made
            if gradient_GV is not None:
                gradients.add(rows.blank_(gradient_GV, group), hidden_GH, group)
            del gradient_GV  # oneDNN's products are memory of their own, and the next group makes others
        hidden_MH, *others = gradients.of_all(self.columns)
        hidden_NH = None if hidden_MH is None else rows.spread(hidden_MH)
        return rows.spread(loss_M), (hidden_NH, *others)

    def _chunks(self, opened: Projection, student: Student, wanted: Sequence[bool]) -> Chunks:
        _, wants_head, *_ = wanted
        return choose_chunks(
            self.rows.num_counted,
            # processes that share a vocabulary take the same chunks
            self.columns.widest(self.num_tokens),
            opened,
            self.teacher if isinstance(self.teacher, Projection) else None,
            chunk_bytes=self.chunk_bytes,
            wants_gradient=any(wanted),
            head_dtype=student.head.dtype if wants_head else None,
        )

    def _row_loss(self, workspace: Workspace) -> RowLoss:
        rows, teacher, settings = self.rows, self.teacher, self.settings
        if isinstance(teacher, SparseTeacher):

            def sparse(logits_CV, chunk, labels_C, weight_C, gradient_CV):
                ids_CK, values = rows.pick(teacher.token_ids_NK, chunk, blank=-1), rows.pick(teacher.values, chunk)
                rest = (teacher.tail, labels_C, weight_C, settings, workspace, gradient_CV)
                return sparse_rows(logits_CV, ids_CK, values, *rest)

            return sparse

        opened = teacher.opened(self.num_tokens)

        def dense(logits_CV, chunk, labels_C, weight_C, gradient_CV):
            hidden_CH = rows.pick(opened.hidden_NH, chunk).to(opened.product_dtype)
            memory_CV = workspace.logits("teacher's logits", len(hidden_CH), teacher.logits_dtype)
            teacher_CV = opened.logits(hidden_CH, memory_CV)
            return dense_rows(logits_CV, teacher_CV, labels_C, weight_C, settings, workspace, gradient_CV)

        return dense
