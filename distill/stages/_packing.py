"""pack(): the rows of a padded batch side by side in fewer, fuller sequences; each row sees itself alone.

Positions start again with each row, by which transformers tells rows apart: its causal masks, and its flash attention,
keep them separate where no attention mask is given. The batch holds the same rows, so the loss is the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.errors import RecipeError

MOST_OFF = 1e-2
"""Of the states' norm: rounding in 16 bits stays below, a second row's tokens do not."""

# B rows, T positions of the padded batch; P sequences of L positions


def pack(
    batch: Mapping[str, np.ndarray], lengths: Sequence[int], capacity: int, *, pad_to: int
) -> dict[str, np.ndarray]:
    """`batch` with every `[B, T, …]` array laid out as `[P, L, …]`, and int64 `position_ids` for its mask.

    Args:
        lengths: of the rows, in tokens.
        capacity: tokens of a sequence at most; no row is longer.
        pad_to: L is a multiple of it, and what is left over is a row of padding.
    """
    sequences = first_fit(lengths, capacity)
    longest = max(sum(lengths[b] for b in rows) for rows in sequences)
    L = -(-longest // pad_to) * pad_to
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


def require_separate_rows(model: Any) -> None:
    """Raises RecipeError where this model lets rows of one sequence see each other; two short rows show it.

    Not every architecture that takes positions builds its mask from them, and nothing would fail later.
    """
    import torch

    from distill.family.head import hidden_states

    first, second = torch.arange(5)[None] + 7, torch.arange(4)[None] + 3
    device = next(model.parameters()).device
    both, positions = torch.cat([first, second], 1), torch.cat([torch.arange(5), torch.arange(4)])[None]
    was_training = model.training
    with torch.no_grad():
        model.eval()
        packed_ND = hidden_states(model, both.to(device), None, positions.to(device))[0].float()
        alone_ND = torch.cat([hidden_states(model, row.to(device), None)[0].float() for row in (first, second)])
    model.train(was_training)
    off = float((packed_ND - alone_ND).norm() / alone_ND.norm())
    if off > MOST_OFF:
        raise RecipeError(
            f"training.packing: {type(model).__name__} lets rows in one sequence see each other (its states are off by "
            f"{off:.2g} of their norm). Leave packing out."
        )


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
    nothing = {"labels": -100, "token_ids": -1}.get(name, 0)
    return np.full_like(flat[:1], nothing)
