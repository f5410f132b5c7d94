"""Heads that lie over two processes give the loss and the gradients of one (see parallel_cases.py)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("parallel_cases.py")
SIZE = 2


def outcomes_of(folder: Path, *start: str, **more: str) -> list[dict[str, str]]:
    """What failed, by case, on each process: importing torch costs more than all cases, so they share processes."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "triton_kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}
    processes = [
        subprocess.Popen(
            [sys.executable, str(CASES), str(folder), str(rank), str(SIZE), *start],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(SIZE)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * SIZE, "\n".join(said)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)]


def assert_none_failed(outcomes: list[dict[str, str]]) -> None:
    assert all(outcomes)
    failed = [
        f"{name}, process {rank}\n{text}" for rank, found in enumerate(outcomes) for name, text in found.items() if text
    ]
    assert not failed, "\n".join(failed)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, str]]:
    return outcomes_of(tmp_path_factory.mktemp("parallel"))


GROUPS = re.findall(r"^@case.*\ndef (\w+)", CASES.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("group", GROUPS)
def test_parallel(group, outcomes):
    mine = [{name: text for name, text in found.items() if name.split("-")[0] == group} for found in outcomes]
    assert_none_failed(mine)


@pytest.mark.slow
def test_by_interpreted_kernels(tmp_path):
    pytest.importorskip("triton", reason="no triton here")
    assert_none_failed(outcomes_of(tmp_path, "by_kernels", DISTILL_KERNELS="triton", TRITON_INTERPRET="1"))
