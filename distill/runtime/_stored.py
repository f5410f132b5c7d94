"""Stored: the weights of a checkpoint by name, each read when it is asked for, and none kept."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Stored(Mapping[str, "torch.Tensor"]):
    """Name → tensor in its stored dtype, of all *.safetensors in a folder.

    A file that stays open keeps every page of it that was touched: at the end the whole student, beside the quantised
    model that it is compared with.
    """

    def __init__(self, folder: Path):
        from safetensors import safe_open

        self._file_of: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                self._file_of |= dict.fromkeys(opened.keys(), file)

    def __getitem__(self, name: str) -> "torch.Tensor":
        from safetensors import safe_open

        with safe_open(self._file_of[name], "pt") as opened:
            return opened.get_tensor(name).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)
