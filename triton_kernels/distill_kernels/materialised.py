"""`divergence` on logits that exist already: any leading strides, no copy of them, one gradient of their size.

N rows of which M count, V shared vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_kernels.autograd import Gradients
from distill_kernels.dense import dense_rows
from distill_kernels.implementation import runs_triton
from distill_kernels.rows import Rows
from distill_kernels.settings import Settings
from distill_kernels.softened import Workspace, block_rows


@dataclass(frozen=True, kw_only=True)
class LogitsCall:
    """All of one call that has no gradient; `evaluate` is what autograd needs of it."""

    settings: Settings
    rows: Rows
    teacher_logits: Tensor
    num_tokens: int
    """V, the shared prefix of the vocabularies."""

    def evaluate(
        self, students: Sequence[Tensor | None], wanted: Sequence[bool], extra_N: Tensor | None
    ) -> tuple[Tensor, Gradients]:
        """Loss of each row `[N]` and, if wanted, the gradient by the student's logits in their dtype and shape."""
        (student,) = students
        assert student is not None
        teacher, num_tokens, device = self.teacher_logits.detach(), self.num_tokens, student.device
        work_dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        gradient = None
        if wanted[0]:
            all_written = self.rows.labels_N is None and student.shape[-1] == num_tokens
            make = torch.empty if all_written else torch.zeros
            gradient = make(student.shape, dtype=student.dtype, device=device)
        loss_N = torch.zeros(self.rows.num_rows, dtype=work_dtype, device=device)
        workspace = Workspace(block_rows(num_tokens, device), num_tokens, work_dtype, device)
        views = [student.detach(), teacher] + ([] if gradient is None else [gradient])
        start, by_kernel = 0, runs_triton(student)
        for student_RV, teacher_RV, *gradient_RV in _flat(views):
            stop = start + len(student_RV)
            if by_kernel:
                loss_N[start:stop] = self._by_kernel(
                    slice(start, stop), [student_RV, teacher_RV, *gradient_RV], extra_N
                )
                start = stop
                continue
            for block in self._blocks(start, stop, workspace.num_rows):
                whole = isinstance(block, slice)
                index = slice(block.start - start, block.stop - start) if whole else block - start
                student_CV, teacher_CV = student_RV[index, :num_tokens], teacher_RV[index, :num_tokens]
                labels_C, weight_C = self._labels_and_weights(block, extra_N, work_dtype)
                gradient_CV = gradient_RV[0][index, :num_tokens] if gradient_RV else None
                if whole and labels_C is not None:
                    labels_C = self.rows.blanked(labels_C, block)
                rest = (labels_C, weight_C, self.settings, workspace, gradient_CV)
                loss_C = dense_rows(student_CV, teacher_CV, *rest)
                loss_N[block] = self.rows.blanked(loss_C, block) if whole else loss_C
                if gradient_CV is not None and whole:
                    self.rows.blank_(gradient_CV, block)
                elif gradient_CV is not None:
                    gradient_RV[0][index, :num_tokens] = gradient_CV  # indexing by rows gave a copy
            start = stop
        return loss_N, (gradient,)

    def _by_kernel(self, rows: slice, matrices: list[Tensor], extra_N: Tensor | None) -> Tensor:
        """The losses of rows that are read where they lie: the kernel passes over those that do not count."""
        from distill_kernels import triton_dense

        student_RV, teacher_RV, *gradient_RV = (matrix[:, : self.num_tokens] for matrix in matrices)
        labels_R, weight_R = self._labels_and_weights(rows, extra_N, torch.float32)
        gradient = gradient_RV[0] if gradient_RV else None
        options = {"gradient_CV": gradient, "ignore_index": self.rows.ignore_index}
        return triton_dense.dense_rows(student_RV, teacher_RV, labels_R, weight_R, self.settings, **options)

    def _labels_and_weights(
        self, rows: slice | Tensor, extra_N: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None]:
        labels_C = None if self.rows.labels_N is None else self.rows.labels_N[rows].long()
        weights = [w[rows].to(dtype) for w in (self.rows.weight_N, extra_N) if w is not None]
        return labels_C, None if not weights else weights[0] if len(weights) == 1 else weights[0] * weights[1]

    def _blocks(self, start: int, stop: int, block: int) -> Iterator[slice | Tensor]:
        """The counted rows among `start` to `stop`, a block at a time: a range where all count, else indices."""
        counted_M = self.rows.counted_M
        if counted_M is None:
            for first in range(start, stop, block):
                yield slice(first, min(first + block, stop))
            return
        yield from counted_M[(counted_M >= start) & (counted_M < stop)].split(block)


def _flat(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors `[..., V]` of equal leading shape as lists of views `[rows, V]`, in order, without a copy."""
    if tensors[0].numel() == 0:
        return
    try:
        flat = [tensor.view(-1, tensor.shape[-1]) for tensor in tensors]
    except RuntimeError:  # a sliced or transposed leading dimension: go through it one by one
        for parts in zip(*(tensor.unbind(0) for tensor in tensors), strict=True):
            yield from _flat(list(parts))
        return
    yield flat
