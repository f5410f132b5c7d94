"""What the tests hold served targets against: transformers' own distributions, in float64."""

import functools
from collections.abc import Collection
from pathlib import Path

import numpy as np

from distill._shards import Row
from distill.targets.next_token import NextTokenTargets
from distill.targets.top_k import TopKTargets

NATS = 1e-3


@functools.cache
def model_of(checkpoint: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def logprobs(checkpoint: Path, ids) -> np.ndarray:
    """float64 `[T, V]` of the whole row."""
    import torch

    with torch.no_grad():
        logits = model_of(checkpoint)(torch.tensor([[int(i) for i in ids]])).logits[0]
    return logits.double().log_softmax(-1).numpy()


def check_row(
    row: Row,
    truth_TV: np.ndarray,
    kept: int,
    *,
    but_not_last: bool = False,
    nats: float = NATS,
    nameless: Collection[int] = (),
) -> int:
    """Holds every id, the next token and the tail against the truth; returns the number of positions.

    `nameless` ids are those that the server names by empty bytes: they are in the tail, if not estimated from it.
    """
    assert row.input_ids_T is not None and isinstance(row.targets, TopKTargets)
    ids = row.input_ids_T
    first = len(ids) - 1 - len(row.targets)
    for place in range(len(row.targets) - but_not_last):
        line, following = truth_TV[first + place], int(ids[first + place + 1])
        stored, values = row.targets.token_ids_SK[place], row.targets.logprobs_SK[place]
        assert len(set(stored.tolist())) == kept and following in stored
        # below, JSON and float32 have other things to say
        seen = (line[stored] > -20) & ~np.isin(stored, list(nameless))
        assert np.abs(line[stored] - values)[seen].max() < nats
        assert abs(row.targets.next_S[place] - line[following]) < nats or line[following] < -20
        likeliest = set(np.argsort(-line, kind="stable")[: kept - 1].tolist())
        assert len(likeliest - set(stored.tolist()) - set(nameless)) <= 1  # two that are as likely as each other
        tail = max(0.0, 1.0 - float(np.exp(line[stored]).sum()))
        # the rest to one inherits the errors of everything that is kept
        error = np.abs(line[stored] - values)[seen].max()
        assert abs(np.exp(row.targets.tail_S[place]) - tail) < max(nats * tail, 2 * error)
    return len(row.targets)


def check_next(row: Row, truth_TV: np.ndarray, nats: float = NATS) -> None:
    assert row.input_ids_T is not None and isinstance(row.targets, NextTokenTargets)
    first = len(row.input_ids_T) - 1 - len(row.targets)
    places = np.arange(first, len(row.input_ids_T) - 1)
    truth = truth_TV[places, row.input_ids_T[first + 1 :]]
    assert np.abs(truth - row.targets.logprobs_S).max() < nats
