"""Rows of student logits against a teacher's logits on a GPU.

A cluster that holds a row takes it where the device has clusters, the rows are whole and there are enough of them
(`triton_resident`); `triton_dense_kernel.dense_kernel`, through which rows stream, takes the others. C rows, V shared
vocabulary.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from distill_kernels.columns import WHOLE, Columns, Cut, Whole
from distill_kernels.implementation import allows_clusters
from distill_kernels.settings import Settings
from distill_kernels.triton_dense_kernel import LABEL_LOGIT, PARTIALS, dense_kernel
from distill_kernels.triton_launch import address_mode, device_of, scalars, tile_shape
from distill_kernels.triton_resident import has_clusters, is_ragged, launch_clusters
from distill_kernels.triton_resident_table import Cluster, cluster_for

# Programs that keep an H200 busy, four on each of its 132 processors; fewer rows than that are split.
_BUSY_PROGRAMS = 528
# Programs of clusters that do: two on each processor. Fewer rows than make so many are split, too.
_BUSY_CLUSTER_PROGRAMS = 264


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
    labelled = labels_C is not None and settings.hard_weight > 0
    cluster = None if cut else _cluster(matrices, settings, address, labelled=labelled)
    if cluster is not None:
        rows = (student_CV, teacher_CV, gradient_CV, loss_C, labels_C, weight_C)
        launch_clusters(*rows, settings, ignore_index, address, cluster)
        return loss_C
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
                HARD=labelled,
                UNIT_TEMPERATURE=settings.temperature == 1,
                STUDENT_CAPPED=settings.student_softcap is not None,
                TEACHER_CAPPED=settings.teacher_softcap is not None,
                ADDRESS=address,
                CONTIGUOUS=all(matrix.stride(1) == 1 for matrix in matrices),
                BLOCK=block,
                num_warps=num_warps,
                enable_fp_fusion=True,  # no default from Triton 3.10 on
            )
        if phase == "statistics" or phase == "sums":
            shared.exchange(labels_C)
    return loss_C


def _cluster(matrices: list[Tensor], settings: Settings, address: str, *, labelled: bool) -> Cluster | None:
    """The cluster that holds a row; None where rows are to stream."""
    student_CV, teacher_CV = matrices[:2]
    if address == "any" or not allows_clusters() or not has_clusters(student_CV.device):
        return None
    num_rows, num_tokens = student_CV.shape
    cluster = cluster_for(
        num_tokens,
        max(student_CV.itemsize, teacher_CV.itemsize),
        settings.kind,
        shifted=address == "shifted",
        ragged=is_ragged(matrices, address),
        labelled=labelled,
        capped=not (settings.student_softcap is None and settings.teacher_softcap is None),
    )
    if cluster is None or num_rows * cluster.num_ctas < _BUSY_CLUSTER_PROGRAMS:
        return None
    return cluster


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
