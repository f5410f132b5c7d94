"""Given log-probabilities as targets: by hand, on a vocabulary of ten."""

import numpy as np
import pytest

from distill.answer_file.top_k import next_logprobs, top_k_targets
from distill.errors import DataError
from distill.targets import KINDS, Layout

V = 10
NAN = np.nan


def targets(ids, probs, following, own=None, *, kept, values="exact"):
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array(probs, dtype=np.float32))
        own = None if own is None else np.log(np.array(own, dtype=np.float32))
    layout = Layout("top_k", V, kept)
    return top_k_targets(np.array(ids), logprobs, np.array(following), own, layout, values, "line 1")


def test_all_that_is_asked_for_is_given():
    made = targets([[4, 2, 7]], [[0.5, 0.3, 0.1]], [2], kept=3)
    assert made.token_ids_SK.tolist() == [[4, 2, 7]]
    np.testing.assert_allclose(np.exp(made.logprobs_SK), [[0.5, 0.3, 0.1]], rtol=1e-6)
    assert np.exp(made.tail_S) == pytest.approx([0.1], abs=1e-6)
    assert np.exp(made.next_S) == pytest.approx([0.3])
    assert made.log_normaliser_S.tolist() == [0]


def test_the_next_token_takes_the_place_of_the_least_likely():
    made = targets([[4, 2, 7]], [[0.5, 0.3, 0.1]], [9], [0.01], kept=3)
    assert made.token_ids_SK.tolist() == [[4, 2, 9]]
    np.testing.assert_allclose(np.exp(made.logprobs_SK), [[0.5, 0.3, 0.01]], rtol=1e-5)
    assert np.exp(made.tail_S) == pytest.approx([0.19], abs=1e-6)


def test_an_unknown_next_token_has_its_share_of_the_tail():
    made = targets([[4, 2, 7]], [[0.5, 0.2, 0.16]], [9], kept=3)
    # 0.14 are left for the seven other tokens
    assert made.token_ids_SK.tolist() == [[4, 2, 9]]
    assert np.exp(made.next_S) == pytest.approx([0.02], rel=1e-5)
    assert np.exp(made.tail_S) == pytest.approx([0.28], abs=1e-6)


def test_what_is_missing_is_filled_with_shares_of_the_tail():
    made = targets([[4, 2, 0], [1, -1, -1]], [[0.5, 0.3, 0.1], [0.1, 0.0, 0.0]], [4, 1], kept=3)
    assert sorted(made.token_ids_SK[1].tolist()) == [0, 1, 2]
    np.testing.assert_allclose(np.exp(made.logprobs_SK[1]), [0.1, 0.1, 0.1], rtol=1e-5)
    assert np.exp(made.tail_S[1]) == pytest.approx(0.7, abs=1e-6)


def test_a_whole_vocabulary_leaves_no_tail():
    probs = np.full((1, V), 0.1)
    made = targets([list(range(V))], probs, [3], kept=V)
    assert sorted(made.token_ids_SK[0].tolist()) == list(range(V))
    assert np.exp(made.tail_S) == pytest.approx([0.0], abs=1e-6)


def test_a_little_more_than_one_is_rounding():
    made = targets([[4, 2]], [[0.6, 0.41]], [4], kept=2)
    np.testing.assert_allclose(np.exp(made.logprobs_SK), [[0.6 / 1.01, 0.41 / 1.01]], rtol=1e-5)


def test_much_more_than_one_is_refused():
    with pytest.raises(DataError, match=r"line 1: the probabilities of position 0 add up to 1\.2"):
        targets([[4, 2]], [[0.6, 0.6]], [4], kept=2)


def test_a_position_without_anything_is_refused():
    with pytest.raises(DataError, match="position 1 has no log-probability"):
        targets([[4], [-1]], [[0.6], [0.0]], [4, 5], kept=1)


def test_renormalised_ones_leave_no_tail():
    made = targets([[4, 2]], [[0.2, 0.2]], [4], kept=2, values="renormalised")
    np.testing.assert_allclose(np.exp(made.logprobs_SK), [[0.5, 0.5]], rtol=1e-6)
    assert np.exp(made.tail_S) == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("values", ["exact", "renormalised"])
def test_the_store_can_keep_them(values):
    layout = Layout("top_k", V, 3)
    made = targets([[4, 2, -1], [4, 2, 0]], [[0.6, 0.4, 0], [0.6, 0.3, 0.05]], [9, 4], kept=3, values=values)
    read = KINDS["top_k"].from_bytes(memoryview(made.to_bytes(layout)), 2, layout)
    assert (read.token_ids_SK == made.token_ids_SK).all() and np.isfinite(read.logprobs_SK).all()
    np.testing.assert_allclose(np.exp(read.logprobs_SK), np.exp(made.logprobs_SK), atol=0.02)


def test_next_logprobs_come_from_their_own_field_or_from_the_top():
    ids, logprobs = np.array([[4, 2], [1, 3]]), np.log(np.array([[0.5, 0.3], [0.6, 0.2]]))
    found = next_logprobs(ids, logprobs, np.array([2, 5]), np.array([NAN, -3.0]), "line 1")
    np.testing.assert_allclose(found, [np.log(0.3), -3.0], rtol=1e-6)
    with pytest.raises(DataError, match="goes on with token 5 at position 1"):
        next_logprobs(ids, logprobs, np.array([2, 5]), None, "line 1")
