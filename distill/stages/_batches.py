"""Which rows make which batch: decided before training from the lengths and the seed alone.

The epochs are one stream of shuffled rows. Windows of it are sorted by length and cut into batches, so that
little is padded; then the batches of a window are shuffled. Every batch is full, and a run that resumes at a
step, or on another number of processes, sees the very same batches.
Processes divide each batch: they take its rows in turn, so that each gets as many long ones as the others.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

WINDOW_BATCHES = 32


@dataclass(frozen=True)
class BatchPlan:
    """`steps` batches of `batch_size` row positions; `tokens` is how many tokens they hold, padding not counted."""

    batches: np.ndarray
    tokens_after: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.batches)

    @property
    def tokens(self) -> int:
        return int(self.tokens_after[-1])

    def share(self, rank: int, processes: int, micro_batches: int) -> np.ndarray:
        """The row positions of one of the processes, `[steps, micro_batches, rows]`.

        The shares of all processes are the batches: no row is in two of them, none is left out, none is repeated.
        """
        return self.batches.reshape(self.steps, micro_batches, -1, processes)[..., rank]

    @property
    def digest(self) -> str:
        """What two processes that planned the same batches agree on."""
        return hashlib.sha256(self.batches.tobytes() + self.tokens_after.tobytes()).hexdigest()[:20]


def plan_batches(
    lengths: Sequence[int], *, batch_size: int, seed: int, epochs: float, max_steps: int | None = None
) -> BatchPlan:
    """`max_steps` batches, or as many as `epochs` passes over the rows make, at least one."""
    steps = max_steps or max(1, round(epochs * len(lengths) / batch_size))
    stream = _batches(np.asarray(lengths), batch_size, seed)
    return _plan([next(stream) for _ in range(steps)], lengths)


def plan_tokens(lengths: Sequence[int], *, batch_size: int, seed: int, tokens: int) -> BatchPlan:
    """As many batches as come closest to `tokens` tokens, at least one: for a baseline with a student's budget."""
    lengths_N = np.asarray(lengths)
    chosen: list[np.ndarray] = []
    seen = 0
    for batch in _batches(lengths_N, batch_size, seed):
        size = int(lengths_N[batch].sum())
        if chosen and seen + size / 2 > tokens:
            break
        chosen.append(batch)
        seen += size
    return _plan(chosen, lengths)


def _plan(batches: list[np.ndarray], lengths: Sequence[int]) -> BatchPlan:
    stacked = np.stack(batches)
    return BatchPlan(stacked, np.asarray(lengths, dtype=np.int64)[stacked].sum(axis=1).cumsum())


def _batches(lengths: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng([seed, 0xBA7C4])
    stream = np.empty(0, dtype=np.int64)
    # no longer than an epoch: sorting would put a row beside its own copy from the next one
    in_window = max(1, min(WINDOW_BATCHES, len(lengths) // batch_size))
    window = in_window * batch_size
    while True:
        while len(stream) < window:
            stream = np.concatenate([stream, rng.permutation(len(lengths))])
        chosen, stream = stream[:window], stream[window:]
        by_length = chosen[np.argsort(lengths[chosen], kind="stable")].reshape(in_window, batch_size)
        yield from by_length[rng.permutation(in_window)]
