"""Systematic sampling of a teacher's distribution: unbiased for forward KL, with far less variance than N draws.

For a distribution p over V tokens, one uniform number u in [0, 1) places N points (u + j) / N, j = 0 … N - 1, on the
cumulative distribution; a token's count is how many points fall into its interval. So E[count_i] = N p_i exactly, and
each count is floor(N p_i) or ceil(N p_i). The derivation, and what it saves, are in docs/sampling.md.

Source: systematic sampling, Madow and Madow 1944; its use for distillation targets in place of independent draws
(random-sampling knowledge distillation, arXiv:2503.16870) is ours.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# N rows of probabilities, n of them in a block, V vocabulary, D draws

BLOCK_BYTES = {"cpu": 8 << 20, "gpu": 1 << 30}
"""Of the cumulative distributions: on a CPU what stays in its cache, which is four times as fast."""


def systematic_draws(probabilities_NV: "Tensor", uniform_N: "Tensor", draws: int) -> "Tensor":
    """int64 `[N, draws]`: the drawn token ids of each row, ascending, a token as often as it was drawn.

    Args:
        probabilities_NV: at least 0, any float dtype; each row is divided by its sum.
        uniform_N: float64 in [0, 1), one number a row.
        draws: points on the cumulative distribution, which is summed in float64: in float32 it would be flat over the
            last few thousand tokens of a large vocabulary, and these would never be drawn.
    """
    import torch

    device = probabilities_NV.device
    drawn_ND = torch.empty((len(probabilities_NV), draws), dtype=torch.int64, device=device)
    steps_D = torch.arange(draws, dtype=torch.float64, device=device)
    size = max(1, BLOCK_BYTES["cpu" if device.type == "cpu" else "gpu"] // (8 * probabilities_NV.shape[1]))
    for block in (slice(start, start + size) for start in range(0, len(probabilities_NV), size)):
        cumulative_nV = probabilities_NV[block].cumsum(dim=-1, dtype=torch.float64)
        total_n1 = cumulative_nV[:, -1:].contiguous()
        points_nD = (uniform_N[block, None] + steps_D) * (total_n1 / draws)
        found_nD = torch.searchsorted(cumulative_nV, points_nD, right=True)
        # rounding may put the last point on the total itself; the last token with any probability takes it
        last_n1 = torch.searchsorted(cumulative_nV, total_n1, right=False)
        drawn_ND[block] = torch.minimum(found_nD, last_n1)
    return drawn_ND


def uniform_of(key: bytes, seed: int, positions: range) -> np.ndarray:
    """float64 `[len(positions)]` in [0, 1): the number of each position of the row with this key.

    It depends on the row's content, the position and the seed, never on which rows were asked before.
    """
    words = np.frombuffer(key[:16], dtype="<u4")
    bits = np.random.Philox(np.random.SeedSequence([seed, *map(int, words)])).random_raw(positions.stop)
    return (bits[positions.start :] >> np.uint64(11)) * 2.0**-53
