"""A batch of any kind of targets against one that is filled position by position."""

import numpy as np
import pytest

from distill.targets import KINDS, Layout, Places
from distill.targets.dense import DenseTargets
from distill.targets.frozen_head import FrozenHeadTargets
from distill.targets.next_token import NextTokenTargets
from distill.targets.sampled import SampledTargets
from distill.targets.top_k import TopKTargets

# Row 0 is used whole and begins late, row 1 is cut, row 2 has none, row 3 is cut to nothing, row 4 fills its row.
NUM_TARGETS = [4, 5, 0, 3, 7]
PLACES = Places((5, 7), firsts=[2, 0, 3, 6, 0], counts=[4, 2, 0, 0, 7])
VOCAB_SIZE = 19
KEPT = {"sampled": 10, "top_k": 3, "dense": 0, "frozen_head": 6, "next": 0}

random = np.random.default_rng(0)


def floats(*shape):
    return random.standard_normal(shape).astype(np.float32)


def row_of(kind, num):
    if kind == "sampled":
        drawn_SD = np.sort(random.integers(VOCAB_SIZE, size=(num, 10)) // random.integers(1, 9, size=(num, 1)), axis=1)
        return SampledTargets.of_draws(drawn_SD, floats(num))
    if kind == "top_k":
        ids_SK = np.array([random.permutation(VOCAB_SIZE)[:3] for _ in range(num)], dtype=np.int32).reshape(num, 3)
        return TopKTargets(ids_SK, floats(num, 3), floats(num), floats(num), floats(num))
    if kind == "dense":
        return DenseTargets(floats(num, VOCAB_SIZE))
    if kind == "frozen_head":
        return FrozenHeadTargets(floats(num, 6), floats(num))
    return NextTokenTargets(floats(num))


def position_of(kind, row, s):
    """What one position of a batch has to show."""
    if kind == "sampled":
        one = row.part(s, s + 1)
        weights = {int(i): np.float32(c / 10) for i, c in zip(one.token_ids_E, one.counts_E, strict=True)}
        return {"weights": weights, "entropy": row.entropy_S[s]}
    if kind == "top_k":
        return {"token_ids": row.token_ids_SK[s], "values": np.append(row.logprobs_SK[s], row.tail_S[s])}
    if kind == "dense":
        return {"logprobs": row.logprobs_SV[s]}
    if kind == "frozen_head":
        return {"vectors": row.vectors_SD[s], "entropy": row.entropy_S[s]}
    return {"logprobs": row.logprobs_S[s]}


def shown(kind, batch, b, t):
    """The same, of a batch."""
    if kind != "sampled":
        return {name: array[b, t] for name, array in batch.items()}
    used = batch["token_ids"][b, t] >= 0
    ids, weights = batch["token_ids"][b, t][used].tolist(), batch["values"][b, t][used]
    assert ids == sorted(set(ids)) and not batch["values"][b, t][~used].any()
    return {"weights": dict(zip(ids, weights, strict=True)), "entropy": batch["entropy"][b, t]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_position_stands_in_its_place(kind):
    rows = [row_of(kind, num) for num in NUM_TARGETS]
    batch = KINDS[kind].batch(rows, PLACES, Layout(kind, VOCAB_SIZE, KEPT[kind]))
    assert all(array.shape[:2] == (5, 7) for array in batch.values())
    assert {array.dtype.name for array in batch.values()} <= {"int32", "float32"}
    for b in range(5):
        for t in range(7):
            s = t - PLACES.firsts[b]
            found = shown(kind, batch, b, t)
            if 0 <= s < PLACES.counts[b]:
                expected = position_of(kind, rows[b], s)
                assert found.keys() == expected.keys()
                assert all(np.array_equal(found[name], expected[name]) for name in found), (b, t)
            elif "token_ids" in found:
                assert (found["token_ids"] == -1).all()
            else:
                assert not any(np.any(value) if name != "weights" else value for name, value in found.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_targets(kind):
    layout = Layout(kind, VOCAB_SIZE, KEPT[kind])
    batch = KINDS[kind].batch([row_of(kind, 0), row_of(kind, 2)], Places((2, 3), [0, 0], [0, 0]), layout)
    assert all(array.shape[:2] == (2, 3) and not (array > 0).any() for array in batch.values())


def test_sampled_weights_add_up_to_one():
    rows = [row_of("sampled", num) for num in NUM_TARGETS]
    sums = SampledTargets.batch(rows, PLACES, Layout("sampled", VOCAB_SIZE, 10))["values"].sum(-1)
    np.testing.assert_allclose(np.sort(sums.reshape(-1))[-13:], 1, rtol=1e-6)
    assert (sums > 0).sum() == 13
