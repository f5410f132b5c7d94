"""Frozen-head targets: the vectors as torch rounds them to bfloat16, the entropy exactly."""

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distill.targets import Layout
from distill.targets.frozen_head import FrozenHeadTargets

FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 5), st.data())
def test_vectors_are_rounded_as_torch_does(hidden_size, num_positions, start, data):
    size = num_positions * hidden_size
    flat = data.draw(st.lists(FLOATS, min_size=size, max_size=size))
    vectors_SD = np.array(flat, dtype=np.float32).reshape(num_positions, hidden_size)
    entropy_S = np.array(data.draw(st.lists(FLOATS, min_size=num_positions, max_size=num_positions)), dtype=np.float32)
    layout = Layout("frozen_head", 1000, hidden_size)
    targets = FrozenHeadTargets(vectors_SD, entropy_S).part(start, num_positions)
    written = targets.to_bytes(layout)
    assert len(written) == len(targets) * (4 + 2 * hidden_size)
    read = FrozenHeadTargets.from_bytes(memoryview(b"?" + written)[1:], len(targets), layout)
    expected_SD = torch.from_numpy(vectors_SD[start:]).bfloat16().float().numpy()
    assert (read.vectors_SD == expected_SD).all() and read.vectors_SD.shape == expected_SD.shape
    assert (read.entropy_S == entropy_S[start:]).all() and len(read) == len(entropy_S[start:])


@settings(deadline=None)
@given(FLOATS)
@example(1 + 2**-8)  # halfway, to even: down
@example(1 + 3 * 2**-8)  # halfway, to even: up
def test_one_number_is_rounded_as_torch_does(number):
    layout = Layout("frozen_head", 10, 1)
    targets = FrozenHeadTargets(np.array([[number]], dtype=np.float32), np.zeros(1, np.float32))
    read = FrozenHeadTargets.from_bytes(memoryview(targets.to_bytes(layout)), 1, layout)
    assert read.vectors_SD[0, 0] == torch.tensor(number, dtype=torch.float32).bfloat16().item()
