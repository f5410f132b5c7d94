"""Next-token targets: exact."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.targets import Layout
from distill.targets.next_token import NextTokenTargets


@settings(deadline=None)
@given(st.lists(st.floats(max_value=0, width=32), max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_what_is_read_was_written(logprobs, start, length):
    layout = Layout("next", 50_000)
    targets = NextTokenTargets(np.array(logprobs, dtype=np.float32)).part(start, start + length)
    written = targets.to_bytes(layout)
    read = NextTokenTargets.from_bytes(memoryview(b"?" + written)[1:], len(targets), layout)
    assert read.logprobs_S.tolist() == logprobs[start : start + length] and len(read) == len(targets)
    assert len(written) == 4 * len(targets)
