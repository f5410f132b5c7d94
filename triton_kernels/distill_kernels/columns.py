"""Columns: which tokens' logits this process holds, and what the processes tell each other about a row.

`Whole` is every token, and nobody is asked. `Cut` is a slice of a vocabulary that lies over several processes, each of
which holds the same rows: they exchange a row's maximum, its sums and single logits, never the row. Every process adds
up what all sent in the same order, so all have the same bits.

N rows of one block, V tokens held here, K token ids per row.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Whole:
    """All tokens are here."""

    def count(self, logits_NV: Tensor) -> int:
        """Tokens of the whole vocabulary."""
        return logits_NV.shape[-1]

    def top(self, logits_NV: Tensor) -> Tensor:
        """The largest of each row, `[N, 1]`."""
        return logits_NV.amax(-1, keepdim=True)

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Sums over the vocabulary from sums over the tokens held here; one shape for all."""
        return parts

    def take(self, values_NV: Tensor, ids_NK: Tensor) -> Tensor:
        """The values of given tokens, `[N, K]`; NaN for an id outside, where ids could not be read before."""
        if values_NV.device.type == "cpu":
            return values_NV.gather(-1, ids_NK)
        places_NK, outside_NK = _clamped(ids_NK, values_NV)
        return values_NV.gather(-1, places_NK).masked_fill_(outside_NK, math.nan)

    def add_(self, values_NV: Tensor, ids_NK: Tensor, added_NK: Tensor) -> Tensor:
        """Adds to the values of given tokens, in place; NaN, somewhere in the row, for an id outside."""
        if values_NV.device.type == "cpu":
            return values_NV.scatter_add_(-1, ids_NK, added_NK)
        places_NK, outside_NK = _clamped(ids_NK, values_NV)
        return values_NV.scatter_add_(-1, places_NK, added_NK.masked_fill(outside_NK, math.nan))

    def locate(self, ids_NK: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where given tokens are among those held here, and which of them are; None: all."""
        return ids_NK, None

    def widest(self, num_tokens: int) -> int:
        """The most tokens that any process holds, where this one holds `num_tokens`."""
        return num_tokens

    def add_up(self, gradient: Tensor | None) -> None:
        """Adds, in place, what the tokens of other processes contribute to a gradient."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Tokens `begin` to `begin + here` of `num_tokens` that lie over the processes of `group`, in their order.

    Rows, labels and ids are the same on every process, and every method is called by all of them at once.
    """

    group: Any
    num_processes: int
    rank: int
    num_tokens: int
    begin: int
    here: int
    most: int
    """Tokens of the process that holds most of them."""
    width: int
    """Tokens from one process's first to the next one's."""

    def count(self, logits_NV: Tensor) -> int:
        return self.num_tokens

    def top(self, logits_NV: Tensor) -> Tensor:
        if logits_NV.shape[-1]:
            top_N1 = logits_NV.amax(-1, keepdim=True)
        else:
            top_N1 = logits_NV.new_full((len(logits_NV), 1), -math.inf)
        return self.gathered(top_N1).amax(0)

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        return self.gathered(torch.stack(parts)).sum(0).unbind(0)

    def take(self, values_NV: Tensor, ids_NK: Tensor) -> Tensor:
        """NaN for an id that is nobody's: where ids cannot be read before, one outside must not pass unseen."""
        places_NK, here_NK = self.locate(ids_NK)
        if values_NV.shape[-1]:
            taken_NK = values_NV.gather(-1, places_NK).masked_fill_(~here_NK, 0.0)
        else:
            taken_NK = values_NV.new_zeros(ids_NK.shape)
        torch.distributed.all_reduce(taken_NK, group=self.group)  # one value and zeros: exact in any order
        return taken_NK.masked_fill_((ids_NK < 0) | (ids_NK >= self.num_tokens), math.nan)

    def add_(self, values_NV: Tensor, ids_NK: Tensor, added_NK: Tensor) -> Tensor:
        if not values_NV.shape[-1]:
            return values_NV
        places_NK, here_NK = self.locate(ids_NK)
        return values_NV.scatter_add_(-1, places_NK, added_NK.masked_fill(~here_NK, 0.0))

    def locate(self, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
        places_NK = ids_NK - self.begin
        here_NK = (places_NK >= 0) & (places_NK < self.here)
        return places_NK.clamp_(0, max(self.here - 1, 0)), here_NK

    def widest(self, num_tokens: int) -> int:
        return self.most

    def add_up(self, gradient: Tensor | None) -> None:
        if gradient is not None and gradient.numel():
            torch.distributed.all_reduce(gradient, group=self.group)

    def gathered(self, tensor: Tensor) -> Tensor:
        """What every process has, `[processes, ...]`."""
        gathered = tensor.new_empty(self.num_processes * tensor.numel())
        distributed: Any = torch.distributed
        # torch 2.13 gave it another name and warns of the old one
        gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
        gather(gathered, tensor.reshape(-1), group=self.group)
        return gathered.view(self.num_processes, *tensor.shape)


def _clamped(ids_NK: Tensor, values_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Ids that a GPU can look up, for one outside ends its process, and which of them were outside."""
    num_tokens = values_NV.shape[-1]
    return ids_NK.clamp(0, num_tokens - 1), (ids_NK < 0) | (ids_NK >= num_tokens)


Columns = Whole | Cut
WHOLE = Whole()
