"""Rows of student logits against a teacher's logits on a GPU: launches `triton_dense_kernel.dense_kernel`.

C rows, V shared vocabulary.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from distill_kernels.columns import WHOLE, Columns, Cut, Whole
from distill_kernels.settings import Settings
from distill_kernels.triton_dense_kernel import LABEL_LOGIT, PARTIALS, dense_kernel
from distill_kernels.triton_softmax import LOG2_E

# Programs that keep an H200 busy, four on each of its 132 processors; fewer rows than that are split.
_BUSY_PROGRAMS = 528


def dense_rows(
    student_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor | None,
    weight_C: Tensor | None,
    settings: Settings,
    gradient_CV: Tensor | None = None,
    ignore_index: int | None = None,
    columns: Columns = WHOLE,
) -> Tensor:
    """The loss of each row in nats, float32 `[C]`; `gradient_CV` as for `dense.dense_rows`.

    A row whose label is `ignore_index` is not read: its loss is 0 and its gradient is left as it was. With a `Cut`, V
    are the tokens held here, labels are those of the whole vocabulary, and none is ignored.
    """
    num_rows, num_tokens = student_CV.shape
    loss_C = torch.empty(num_rows, dtype=torch.float32, device=student_CV.device)
    if num_rows == 0:
        return loss_C
    matrices = [student_CV, teacher_CV] + ([] if gradient_CV is None else [gradient_CV])
    address, cut = address_mode(matrices), isinstance(columns, Cut)
    # processes that share a row split their parts of it alike, whatever their own addresses are
    widest = columns.widest(num_tokens)
    block, num_warps = tile_shape(widest)
    splits, segment_tiles = split(num_rows, widest + 8 * (cut or address == "shifted"), block)
    shared = Shared(num_rows, splits, columns, loss_C)
    here_C = shared.labels_here(labels_C)
    launch: Any = dense_kernel[(num_rows, splits)]
    for phase in _phases(settings.kind, splits, cut=cut):
        with device_of(student_CV):
            launch(
                student_CV,
                teacher_CV,
                gradient_CV if phase in ("whole", "gradient") else None,
                loss_C,
                shared.partials,
                None if here_C is None else here_C.contiguous(),
                None if weight_C is None else weight_C.float().contiguous(),  # an expanded gradient has stride 0
                *(matrix.stride(axis) for axis in (0, 1) for matrix in (student_CV, teacher_CV, matrices[-1])),
                num_tokens,
                *scalars(settings),
                0 if ignore_index is None else ignore_index,
                shared.splits,
                shared.first_split,
                segment_tiles,
                PHASE=phase,
                LANES=triton.next_power_of_2(shared.splits),
                KIND=settings.kind,
                IGNORES=ignore_index is not None and labels_C is not None,
                HARD=settings.hard_weight > 0 and labels_C is not None,
                UNIT_TEMPERATURE=settings.temperature == 1,
                STUDENT_CAPPED=settings.student_softcap is not None,
                TEACHER_CAPPED=settings.teacher_softcap is not None,
                ADDRESS=address,
                CONTIGUOUS=all(matrix.stride(1) == 1 for matrix in matrices),
                BLOCK=block,
                num_warps=num_warps,
            )
        if phase == "statistics" or phase == "sums":
            shared.exchange(labels_C)
    return loss_C


class Shared:
    """What the programs of a row leave to each other, those of other processes included."""

    def __init__(self, num_rows: int, splits: int, columns: Columns, like: Tensor) -> None:
        self._columns, self._num_rows = columns, num_rows
        num_processes, rank = (columns.num_processes, columns.rank) if isinstance(columns, Cut) else (1, 0)
        self.splits, self.first_split = splits * num_processes, splits * rank
        alone = splits == 1 and isinstance(columns, Whole)
        self.partials = like if alone else like.new_empty(num_rows * self.splits * PARTIALS)

    def labels_here(self, labels_C: Tensor | None) -> Tensor | None:
        """Labels as positions among the tokens held here; one of another process lies outside of them."""
        if labels_C is None or not isinstance(self._columns, Cut):
            return labels_C
        return labels_C - self._columns.begin

    def exchange(self, labels_C: Tensor | None) -> None:
        """Brings what the programs of all processes left, and the label's logit from where the label is."""
        columns = self._columns
        if not isinstance(columns, Cut):
            return
        parts = self.partials.view(self._num_rows, columns.num_processes, -1)
        gathered = columns.gathered(parts[:, columns.rank].contiguous())
        parts.copy_(gathered.transpose(0, 1))
        if labels_C is not None:
            owner_C = (labels_C // columns.width).clamp(0, columns.num_processes - 1)
            row_C = torch.arange(self._num_rows, device=labels_C.device)
            parts[:, 0, LABEL_LOGIT] = gathered[owner_C, row_C, LABEL_LOGIT]


def tile_shape(num_tokens: int) -> tuple[int, int]:
    """Tokens per tile and warps per program: 16 tokens a thread, few enough registers for several programs per SM."""
    return (4096, 8) if num_tokens >= 4096 else (1024, 4)


def split(num_rows: int, num_tokens: int, block: int) -> tuple[int, int]:
    """Programs per row, and tiles for each of them: one program has a whole row where rows are many."""
    num_tiles = -(-num_tokens // block)
    wanted = min(-(-_BUSY_PROGRAMS // num_rows), num_tiles, 64)
    tiles_each = -(-num_tiles // wanted)
    return -(-num_tiles // tiles_each), tiles_each


def _phases(kind: str, splits: int, *, cut: bool) -> tuple[str, ...]:
    if splits == 1 and not cut:
        return ("whole",)
    return ("statistics", "gradient") if kind in ("forward_kl", "reverse_kl") else ("statistics", "sums", "gradient")


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
