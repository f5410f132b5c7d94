"""Given log-probabilities as top-k targets: K ids for every position, the text's next token among them, and the tail.

What the file gives is kept as it is, the likeliest first. Where it gives fewer than K ids, or not the next token's
log-probability, those ids share what the given ones leave over evenly with all the others: the tail bucket, spread
over the tokens in it. So no probability is claimed that the file did not leave, and none is taken from it. What the
evenly spread tail leaves of an unlikely token is an estimate, also in `next_S`.
"""

import numpy as np

from distill.answer_file.given import Values
from distill.errors import DataError
from distill.targets.layout import Layout
from distill.targets.top_k import LEAST, TopKTargets

MOST_MASS = {"exact": 1.02, "approximate": 1.5, "renormalised": np.inf}
"""What the given probabilities may add up to before they are taken for something else: 2 % is what sixteen bits or four
decimals can do, a fitted curve may be further off. More than one is divided by what they add up to."""

# S positions, K ids given, M more columns, P ids kept, V vocabulary


def top_k_targets(
    ids_SK: np.ndarray,
    logprobs_SK: np.ndarray,
    next_ids_S: np.ndarray,
    next_logprobs_S: np.ndarray | None,
    layout: Layout,
    values: Values,
    where: str,
) -> TopKTargets:
    """The targets of one row; ids that are -1 were not given. All sums in float64.

    `log_normaliser_S` is 0, as if the logits were the log-probabilities: a file does not say what they were.

    Raises:
        DataError: nothing is given for a position, or its probabilities add up to more than rounding explains.
    """
    ids_SK = np.asarray(ids_SK, dtype=np.int64)
    given_SK = np.where(ids_SK >= 0, logprobs_SK.astype(np.float64), -np.inf)
    if values != "renormalised":
        given_SK = np.minimum(given_SK, 0.0)
    ids_SK, given_SK = _with_next(ids_SK, given_SK, next_ids_S, next_logprobs_S)
    known_SK = np.isfinite(given_SK) & (ids_SK >= 0)
    if not known_SK.any(axis=1).all():
        raise DataError(f"{where}: position {int((~known_SK.any(axis=1)).argmax())} has no log-probability at all.")
    highest_S1 = given_SK.max(axis=1, keepdims=True)
    log_mass_S1 = highest_S1 + np.log(np.exp(given_SK - highest_S1).sum(axis=1, keepdims=True))
    if (log_mass_S1 > np.log(MOST_MASS[values])).any():
        raise DataError(
            f"{where}: the probabilities of position {int(log_mass_S1.argmax())} add up to "
            f"{np.exp(log_mass_S1.max()):.4g}; natural logarithms of probabilities are needed, of at most 1 in all."
        )
    given_SK = given_SK - (log_mass_S1 if values == "renormalised" else np.maximum(log_mass_S1, 0.0))
    rest_S = np.maximum(1.0 - np.exp(given_SK).sum(axis=1), 0.0)
    others_S = np.maximum(layout.vocab_size - known_SK.sum(axis=1), 1)
    with np.errstate(divide="ignore"):
        share_S = np.maximum(np.log(rest_S / others_S), given_SK.max(axis=1) + LEAST)
    is_next_SK = ids_SK == next_ids_S[:, None]
    given_SK = np.where(is_next_SK & ~known_SK, share_S[:, None], given_SK)
    ids_SK = np.where(known_SK | is_next_SK, ids_SK, -1)
    ids_SK, given_SK = _filled(ids_SK, given_SK, share_S, layout.kept)
    return _likeliest(ids_SK, given_SK, next_ids_S, layout.kept)


def next_logprobs(
    ids_SK: np.ndarray | None,
    logprobs_SK: np.ndarray | None,
    next_ids_S: np.ndarray,
    next_logprobs_S: np.ndarray | None,
    where: str,
) -> np.ndarray:
    """float32 `[S]`: the log-probability of the text's own tokens. Raises DataError where the file does not give it."""
    found_S = np.full(len(next_ids_S), np.nan) if next_logprobs_S is None else next_logprobs_S.astype(np.float64)
    if ids_SK is not None and logprobs_SK is not None:
        is_next_SK = ids_SK == next_ids_S[:, None]
        among_S = np.where(is_next_SK, logprobs_SK, -np.inf).max(axis=1, initial=-np.inf)
        found_S = np.where(np.isnan(found_S) & is_next_SK.any(axis=1), among_S, found_S)
    if np.isnan(found_S).any():
        position = int(np.isnan(found_S).argmax())
        raise DataError(
            f"{where}: the text goes on with token {next_ids_S[position]} at position {position}, which is not among "
            "those with a log-probability. Use loss=text."
        )
    return np.minimum(found_S, 0.0).astype(np.float32)


def _with_next(
    ids_SK: np.ndarray, given_SK: np.ndarray, next_ids_S: np.ndarray, next_logprobs_S: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """With one more column: the next token where it is not among the ids, at -inf where nobody knows its own."""
    own_S = np.full(len(next_ids_S), -np.inf)
    if next_logprobs_S is not None:
        own_S = np.where(np.isnan(next_logprobs_S), -np.inf, np.minimum(next_logprobs_S, 0.0))
    absent_S = ~(ids_SK == next_ids_S[:, None]).any(axis=1)
    column_S, logprobs_S = np.where(absent_S, next_ids_S, -1), np.where(absent_S, own_S, -np.inf)
    return np.column_stack([ids_SK, column_S]), np.column_stack([given_SK, logprobs_S])


def _filled(ids_SK: np.ndarray, given_SK: np.ndarray, share_S: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """With further columns, so that every position has `kept` ids: the lowest that it lacks, at the tail's share."""
    missing_S = kept - (ids_SK >= 0).sum(axis=1)
    more = max(0, int(missing_S.max(initial=0)))
    if not more:
        return ids_SK, given_SK
    filler_SM = np.full((len(ids_SK), more), -1, dtype=np.int64)
    lowest = np.arange(kept + 1)
    for position in np.flatnonzero(missing_S > 0):
        free = np.setdiff1d(lowest, ids_SK[position], assume_unique=False)
        filler_SM[position, : missing_S[position]] = free[: missing_S[position]]
    shares_SM = np.where(filler_SM >= 0, share_S[:, None], -np.inf)
    return np.concatenate([ids_SK, filler_SM], axis=1), np.concatenate([given_SK, shares_SM], axis=1)


def _likeliest(ids_SK: np.ndarray, given_SK: np.ndarray, next_ids_S: np.ndarray, kept: int) -> TopKTargets:
    is_next_SK = ids_SK == next_ids_S[:, None]
    given_SK = np.where(ids_SK >= 0, given_SK, -np.inf)
    # the next token stays whatever its rank
    order_SP = np.argsort(-np.where(is_next_SK, np.inf, given_SK), axis=1, kind="stable")[:, :kept]
    ids_SP, logprobs_SP = np.take_along_axis(ids_SK, order_SP, 1), np.take_along_axis(given_SK, order_SP, 1)
    order_SP = np.argsort(-logprobs_SP, axis=1, kind="stable")
    ids_SP, logprobs_SP = np.take_along_axis(ids_SP, order_SP, 1), np.take_along_axis(logprobs_SP, order_SP, 1)
    with np.errstate(divide="ignore"):
        tail_S = np.log(np.maximum(1.0 - np.exp(logprobs_SP).sum(axis=1), 0.0))
    return TopKTargets(
        ids_SP.astype(np.int32),
        logprobs_SP.astype(np.float32),
        tail_S.astype(np.float32),
        np.where(is_next_SK, given_SK, -np.inf).max(axis=1).astype(np.float32),
        np.zeros(len(ids_SP), dtype=np.float32),
    )
