"""Runs interpreted_rows.py, and what test_dense.py and test_sparse.py say about rows, with the kernels interpreted."""

import numpy
import pytest
from interpreting import run_interpreted

# of the eager implementation's own tests: what matters is that a row has the same meaning
SAME_AS_EAGER = (
    "(test_dense and (masked_tokens or extreme or poisoned or nothing_but or offset or identical or strides)) "
    "or (test_sparse and (sure or masked or poison or samples or half_precision or text_alone))"
)


@pytest.mark.slow
def test_rows_in_the_interpreter():
    triton = pytest.importorskip("triton", reason="no triton here")
    version = [tuple(map(int, module.__version__.split(".")[:2])) for module in (triton, numpy)]
    if version[0] < (3, 7) and version[1] >= (2, 4):
        pytest.skip("before 3.7 Triton's interpreter cannot loop to a run-time bound with numpy 2.4")
    run_interpreted(["interpreted_rows.py", "test_dense.py", "test_sparse.py"], f"interpreted_rows or {SAME_AS_EAGER}")
