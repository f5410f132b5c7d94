"""pack(): the rows of a padded batch side by side in fewer, fuller sequences; each row sees itself alone.

Positions start again with each row, by which transformers tells rows apart: its causal masks, and its flash attention,
keep them separate where no attention mask is given. The batch holds the same rows, so the loss is the same.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from distill.loss._divergence import IGNORED

# B rows, T positions of the padded batch; P sequences of L positions


def pack(
    batch: Mapping[str, np.ndarray], lengths: Sequence[int], capacity: int, *, pad_to: int
) -> dict[str, np.ndarray]:
    """`batch` with every `[B, T, …]` array laid out as `[P, L, …]`, and int64 `position_ids` for its mask.

    Args:
        lengths: of the rows, in tokens.
        capacity: tokens of a sequence at most; no row is longer.
        pad_to: L is a multiple of it, or `capacity`; what is left over is a row of padding.
    """
    sequences = first_fit(lengths, capacity)
    longest = max(sum(lengths[b] for b in rows) for rows in sequences)
    L = min(-(-longest // pad_to) * pad_to, capacity)
    B, T = batch["attention_mask"].shape
    nowhere = B * T  # one past the last position: what padding is laid out from
    source_PL = np.full((len(sequences), L), nowhere)
    position_ids = np.zeros((len(sequences), L), dtype=np.int64)
    for p, rows in enumerate(sequences):
        start = 0
        for b in rows:
            source_PL[p, start : start + lengths[b]] = b * T + np.arange(lengths[b])
            position_ids[p, start : start + lengths[b]] = np.arange(lengths[b])
            start += lengths[b]
        position_ids[p, start:] = np.arange(L - start)
    packed = {}
    for name, array in batch.items():
        if name == "attention_mask":
            continue
        if array.shape[:2] != (B, T):
            packed[name] = array
            continue
        flat = array.reshape(B * T, *array.shape[2:])
        packed[name] = np.concatenate([flat, _padding(name, flat)])[source_PL]
    return {**packed, "position_ids": position_ids}


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which rows share a sequence: the longest first, each into the first sequence that has room for it."""
    sequences: list[list[int]] = []
    room: list[int] = []
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
        p = next((p for p, left in enumerate(room) if left >= lengths[b]), None)
        if p is None:
            sequences.append([])
            room.append(capacity)
            p = len(room) - 1
        sequences[p].append(b)
        room[p] -= lengths[b]
    return sequences


def _padding(name: str, flat: np.ndarray) -> np.ndarray:
    """One position that counts for nothing, like those of `flat`."""
    nothing = {"labels": IGNORED, "token_ids": -1}.get(name, 0)
    return np.full_like(flat[:1], nothing)
