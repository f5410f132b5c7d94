"""Tests with the kernels interpreted: in a process of their own, for Triton decides at import whether it interprets."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_interpreted(names: list[str], keywords: str, *plugins: str) -> None:
    """Runs the tests of these files beside this one that pytest's `-k keywords` takes; all of them must pass."""
    options = ["-q", "-x", "-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider", "-k", keywords]
    for plugin in plugins:
        options += ["-p", plugin]
    environment = {**os.environ, "DISTILL_KERNELS": "triton", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *(path for path in sys.path if path)])
    command = [sys.executable, "-m", "pytest", *options, *(str(HERE / name) for name in names)]
    run = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert " passed" in run.stdout.splitlines()[-1], run.stdout[-500:]
    print(run.stdout.splitlines()[-1])
