"""The number of CPU threads is part of a result: sums are taken in another order with another number of them."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from distill.artifact import write_whole
from distill.distributed import world


@contextlib.contextmanager
def same_threads(folder: Path) -> Iterator[int]:
    """Runs the block with the number of threads with which the work in `folder` began; the block is told how many.

    Several processes keep the number that their launcher gave each: sums are taken in another order anyway.
    """
    import torch

    before = torch.get_num_threads()
    if world().size > 1:
        yield before
        return
    file = folder / "threads.json"
    if not file.exists():
        write_whole(file, json.dumps(before))
    torch.set_num_threads(json.loads(file.read_text()))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
