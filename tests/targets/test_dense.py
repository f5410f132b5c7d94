"""Dense targets: every log-probability within half a float16 step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.targets import Layout
from distill.targets.dense import DenseTargets


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(0, 5), st.integers(0, 5), st.floats(0.1, 50), st.integers(0, 2**32))
def test_log_probabilities_come_back_within_eleven_bits(vocab_size, num_positions, start, scale, seed):
    logits_SV = scale * np.random.default_rng(seed).standard_normal((num_positions, vocab_size))
    logprobs_SV = (logits_SV - np.logaddexp.reduce(logits_SV, axis=1, keepdims=True)).astype(np.float32)
    layout = Layout("dense", vocab_size)
    targets = DenseTargets(logprobs_SV).part(start, num_positions)
    data = targets.to_bytes(layout)
    assert len(targets) == max(0, num_positions - start) and len(data) == 2 * len(targets) * vocab_size
    read = DenseTargets.from_bytes(memoryview(b"?" + data)[1:], len(targets), layout)
    expected_SV = logprobs_SV[start:]
    assert read.logprobs_SV.dtype == np.float32 and len(read) == len(targets)
    assert (np.abs(read.logprobs_SV - expected_SV) <= 2**-11 * np.abs(expected_SV) + 2**-25).all()


def test_an_impossible_token_stays_finite_and_impossible():
    logprobs_SV = np.array([[0.0, -np.inf, -1e6]], dtype=np.float32)
    layout = Layout("dense", 3)
    read = DenseTargets.from_bytes(memoryview(DenseTargets(logprobs_SV).to_bytes(layout)), 1, layout)
    assert read.logprobs_SV.tolist() == [[0.0, -1e4, -1e4]]
