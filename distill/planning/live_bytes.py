"""LiveBytes: what a computation would hold in memory, counted while torch only pretends to compute.

Under FakeTensorMode every operation knows the shapes and dtypes of what it makes, and autograd keeps what it would
keep: so nothing about an architecture's blocks is written down here, whatever its layers, attention or dtypes are.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages while they live. `now` and `peak` start at 0; what is `known` before does not count."""

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return result

    def forget(self, tensor: torch.Tensor) -> None:
        """Counts this tensor no longer: somebody else accounts for it."""
        key = tensor.untyped_storage()._cdata
        self.now -= self._sizes.pop(key, 0)

    def start_peak(self) -> None:
        """The peak from here on."""
        self.peak = self.now

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
