"""Runs interpreted_rows.py, and what test_dense.py and test_sparse.py say about rows, with the kernels interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

# of the eager implementation's own tests: what matters is that a row has the same meaning
SAME_AS_EAGER = (
    "(test_dense and (masked_tokens or extreme or poisoned or nothing_but or offset or identical or strides)) "
    "or (test_sparse and (sure or masked or poison or samples or half_precision or text_alone))"
)


@pytest.mark.slow
def test_rows_in_the_interpreter():
    """In a process of their own, for Triton decides at import whether it interprets."""
    triton = pytest.importorskip("triton", reason="no triton here")
    version = [tuple(map(int, module.__version__.split(".")[:2])) for module in (triton, numpy)]
    if version[0] < (3, 7) and version[1] >= (2, 4):
        pytest.skip("before 3.7 Triton's interpreter cannot loop to a run-time bound with numpy 2.4")
    here = Path(__file__).parent
    files = [str(here / name) for name in ("interpreted_rows.py", "test_dense.py", "test_sparse.py")]
    options = ["-q", "-x", "-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider"]
    options += ["-k", f"interpreted_rows or {SAME_AS_EAGER}"]
    environment = {**os.environ, "DISTILL_KERNELS": "triton", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "pytest", *options, *files]
    run = subprocess.run(command, env=environment, cwd=here.parents[1], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert " passed" in run.stdout.splitlines()[-1], run.stdout[-500:]
    print(run.stdout.splitlines()[-1])
