"""Rows: which rows of a call count, and what belongs to each of them. N rows of which M count, C rows of one chunk."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Everything is flat, `[N]`; a row that does not count is never read, projected or added.

    While a CUDA graph is captured, nobody can wait for their number: M is N then, and what is read of such a row is
    blank, and its loss and gradient are zero.
    """

    num_rows: int
    labels_N: Tensor | None
    weight_N: Tensor | None
    counted_M: Tensor | None
    """Indices of the rows that count; None if all do, or if `blank_N` tells."""
    ignore_index: int = -100
    """The label of the rows that do not."""
    blank_N: Tensor | None = None
    """Which rows do not count, where they could not be left out."""

    @property
    def num_counted(self) -> int:
        """M."""
        return self.num_rows if self.counted_M is None else len(self.counted_M)

    def pick(self, tensor: Tensor, chunk: slice, blank: int = 0) -> Tensor:
        """The chunk's rows of a tensor `[N, ...]`; a view where every row counts."""
        if self.counted_M is not None:
            return tensor.index_select(0, self.counted_M[chunk])
        return self.blanked(tensor[chunk], chunk, blank)

    def blanked(self, tensor: Tensor, chunk: slice, blank: int = 0) -> Tensor:
        """A chunk's tensor `[C, ...]`, `blank` in the rows that could not be left out."""
        return tensor if self.blank_N is None else tensor.masked_fill(self._blank(tensor, chunk), blank)

    def blank_(self, tensor: Tensor, chunk: slice) -> Tensor:
        """The same with 0, in place."""
        return tensor if self.blank_N is None else tensor.masked_fill_(self._blank(tensor, chunk), 0)

    def _blank(self, tensor: Tensor, chunk: slice) -> Tensor:
        assert self.blank_N is not None
        return self.blank_N[chunk].view(-1, *[1] * (tensor.dim() - 1))

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


def is_captured(device: torch.device) -> bool:
    """Whether work on this device becomes part of a CUDA graph, so that nothing may depend on what it computes."""
    # without CUDA there are fake tensors only, of which no graph is captured
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
