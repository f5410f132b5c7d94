"""Rows: which rows of a call count, and what belongs to each of them. N rows of which M count, C rows of one chunk."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Everything is flat, `[N]`; a row that does not count is never read, projected or added."""

    num_rows: int
    labels_N: Tensor | None
    weight_N: Tensor | None
    counted_M: Tensor | None
    """Indices of the rows that count; None if all do."""
    ignore_index: int = -100
    """The label of the rows that do not."""

    @property
    def num_counted(self) -> int:
        """M."""
        return self.num_rows if self.counted_M is None else len(self.counted_M)

    def pick(self, tensor: Tensor, chunk: slice) -> Tensor:
        """The chunk's rows of a tensor `[N, ...]`; a view where every row counts."""
        return tensor[chunk] if self.counted_M is None else tensor.index_select(0, self.counted_M[chunk])

    def spread(self, tensor: Tensor) -> Tensor:
        """A tensor `[M, ...]` as `[N, ...]`, zero in the rows that do not count."""
        if self.counted_M is None:
            return tensor
        return tensor.new_zeros(self.num_rows, *tensor.shape[1:]).index_copy_(0, self.counted_M, tensor)

    def labels(self, chunk: slice) -> Tensor | None:
        """int64 `[C]`."""
        return None if self.labels_N is None else self.pick(self.labels_N, chunk).long()

    def weights(self, chunk: slice, extra_N: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The rows' weights times `extra_N`, `[C]`; None if both are absent."""
        given = [self.pick(tensor, chunk).to(dtype) for tensor in (self.weight_N, extra_N) if tensor is not None]
        if not given:
            return None
        return given[0] if len(given) == 1 else given[0] * given[1]
