"""How many rows have their logits, and how many the gradient by them, in memory at a time.

What the gradient by the logits says about a head is a product `[V, rows] @ [rows, H]`. A product for each chunk of
logits adds to a float32 sum `[V, H]` each time: for a head of 128,256 × 4096 that sum is read and written in 1 ms of an
H200, for one of 32,000 × 512 the additions take a third of the products' time on a CPU. So chunks form groups: logits
are made chunk by chunk, the 16-bit gradient of a group is kept, and its products are taken at once.

Where the gradient of all rows takes no more than the float32 sum would, there is one group, and no sum.

M rows that count, V tokens held here, H hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from distill_kernels.projection import Projection, ends_in_16_bits

_CPU_BUDGET, _GPU_BUDGET = 32 * 2**20, 2 * 2**30

# More rows make no product faster, and the logits leave the cache: V = 2048, H = 128/256, N = 2048, bfloat16 took
# 26 ms with 1024 rows and 34 ms with all of them in one chunk (one thread's time).
_CPU_CHUNK_ROWS = 1024

# A GPU's products work on 128 rows at a time.
_GPU_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Rows of a chunk and of a group, the last of either may have fewer."""

    num_rows: int
    """M."""
    chunk_rows: int
    group_rows: int

    def groups(self) -> Iterator[slice]:
        """The rows of each group."""
        return _parts(0, self.num_rows, self.group_rows)

    def chunks_of(self, group: slice) -> Iterator[slice]:
        """The rows of each chunk of a group."""
        return _parts(group.start, group.stop, self.chunk_rows)

    @property
    def num_groups(self) -> int:
        """0 where no row counts."""
        return -(-self.num_rows // self.group_rows)


def choose_chunks(
    num_rows: int,
    num_tokens: int,
    student: Projection,
    teacher: Projection | None,
    *,
    chunk_bytes: int | None,
    wants_gradient: bool,
    head_dtype: torch.dtype | None,
) -> Chunks:
    """Chunks that fit `chunk_bytes`: logits of the student and of a dense teacher, and the gradient by them.

    None stands for 32 MiB and at most 1024 rows on a CPU, for 2 GiB elsewhere. Beyond it nothing is taken but the
    4 · V · H bytes of the head's gradient in float32, or at most as many for the 16-bit gradient by all logits instead
    and, once the logits' memory is free again, the 2 · V · H of the head's gradient that is made of it.

    Args:
        head_dtype: that of the head's gradient in the end, None if it is not wanted.
    """
    on_cpu = student.head_VH.device.type == "cpu"
    budget = chunk_bytes or (_CPU_BUDGET if on_cpu else _GPU_BUDGET)
    multiple = 1 if on_cpu else _GPU_ROWS
    most_rows = _CPU_CHUNK_ROWS if on_cpu and chunk_bytes is None else num_rows
    logits_bytes = student.logits_dtype.itemsize + (teacher.logits_dtype.itemsize if teacher else 0)
    logits_bytes, gradient_bytes = logits_bytes * num_tokens, student.product_dtype.itemsize * num_tokens
    in_place = student.logits_dtype == student.product_dtype
    adds_up = head_dtype is not None and student.product_dtype.itemsize == 2
    # 2 · M · V <= 4 · V · H, the float32 sum that a head of 16 bits has no other use for
    fits = num_rows <= 2 * student.head_VH.shape[1]
    beside = gradient_bytes if wants_gradient and not in_place else 0

    chunk_rows = group_rows = min(most_rows, budget // (logits_bytes + beside))
    if adds_up and fits and ends_in_16_bits(head_dtype, student.product_dtype):
        group_rows = num_rows
    elif adds_up and not in_place:
        chunk_rows, group_rows = budget // 2 // logits_bytes, budget // 2 // gradient_bytes
    group_rows = _even(num_rows, max(chunk_rows, group_rows), multiple)
    return Chunks(num_rows=num_rows, chunk_rows=_even(group_rows, chunk_rows, multiple), group_rows=group_rows)


def _even(length: int, most: int, multiple: int) -> int:
    """The length of parts, about equal, that are no longer than `most`."""
    most = max(1, most)
    if most >= multiple:
        most -= most % multiple
    num_parts = max(1, -(-length // most))
    even = -(-length // num_parts)
    return max(1, min(-(-even // multiple) * multiple, most, length))


def _parts(start: int, stop: int, length: int) -> Iterator[slice]:
    for begin in range(start, stop, length):
        yield slice(begin, min(begin + length, stop))
