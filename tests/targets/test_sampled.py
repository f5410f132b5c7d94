"""Sampled targets: what is read is what was drawn, for any vocabulary, number of draws and cut."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distill.targets import Layout
from distill.targets.sampled import SampledTargets, sampled_bytes

# S positions, D draws


@st.composite
def drawn_rows(draw):
    """(layout, drawn ids `[S, D]`, entropies `[S]`): from every point on one id to every point on another."""
    vocab_size = draw(st.one_of(st.integers(2, 300), st.integers(2, 2**20)))
    draws, num_positions = draw(st.integers(1, 300)), draw(st.integers(0, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    drawn_SD = np.empty((num_positions, draws), dtype=np.int64)
    for s in range(num_positions):
        ids = random.integers(vocab_size, size=random.integers(1, min(draws, 60) + 1))
        drawn_SD[s] = np.sort(random.choice([*ids, 0, vocab_size - 1][: len(ids) + random.integers(3)], size=draws))
    return Layout("sampled", vocab_size, draws), drawn_SD, random.gamma(1.0, 2.0, num_positions).astype(np.float32)


def positions_of(targets):
    """A {token id: count} for each position, read entry by entry."""
    found, start = [], 0
    for end in targets.ends_S:
        ids = targets.token_ids_E[start:end].tolist()
        assert ids == sorted(set(ids))
        found.append(dict(zip(ids, targets.counts_E[start:end].tolist(), strict=True)))
        start = end
    assert start == len(targets.token_ids_E) == len(targets.counts_E)
    return found


def written_and_read(targets, layout):
    lies_in = b"?" + targets.to_bytes(layout)
    return SampledTargets.from_bytes(memoryview(lies_in)[1:], len(targets), layout)


@settings(deadline=None)
@given(drawn_rows(), st.data())
@example((Layout("sampled", 2, 1), np.array([[0], [1], [1]]), np.zeros(3, np.float32)), None)  # entries of two bits
@example((Layout("sampled", 2, 3), np.array([[0, 0, 1]] * 5), np.zeros(5, np.float32)), None)
@example((Layout("sampled", 2**20, 300), np.full((2, 300), 2**20 - 1), np.zeros(2, np.float32)), None)
def test_ids_and_counts_come_back_exactly(case, data):
    layout, drawn_SD, entropy_S = case
    targets = SampledTargets.of_draws(drawn_SD, entropy_S)
    expected = [dict(Counter(drawn_D.tolist())) for drawn_D in drawn_SD]
    assert positions_of(targets) == expected and len(targets) == len(drawn_SD)

    read = written_and_read(targets, layout)
    assert positions_of(read) == expected and len(read) == len(drawn_SD)
    # float16 has eleven bits
    assert (np.abs(read.entropy_S - entropy_S) <= 2**-11 * entropy_S + 2**-25).all()
    assert len(targets.to_bytes(layout)) == sampled_bytes(sum(map(len, expected)), len(expected), layout)

    start = data.draw(st.integers(0, len(drawn_SD))) if data else 0
    stop = data.draw(st.integers(start, len(drawn_SD))) if data else len(drawn_SD)
    for part in (targets.part(start, stop), written_and_read(targets.part(start, stop), layout)):
        assert positions_of(part) == expected[start:stop] and len(part) == stop - start
    assert (targets.part(start, stop).entropy_S == entropy_S[start:stop]).all()


@pytest.mark.parametrize(("draws", "bits"), [(1, 19), (12, 22), (25, 23), (50, 24), (64, 24), (65, 25)])
def test_bytes_of_a_large_vocabulary(draws, bits):
    drawn_SD = np.sort(np.random.default_rng(0).choice(151_936, size=(16, draws)), axis=1)
    num_entries = sum(len(set(drawn_D)) for drawn_D in drawn_SD.tolist())
    data = SampledTargets.of_draws(drawn_SD, np.ones(16)).to_bytes(Layout("sampled", 151_936, draws))
    assert len(data) == 2 * 16 + -(-num_entries * bits // 8)
