"""Each test runs on the CPU, wherever it is; on a GPU too where there is one (`-m gpu`)."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, cli_environment
from tests.gpu import work

WORK = Path(__file__).with_name("work.py")
ON_GPU_ALONE = ("triton", "large")
"""Words in the names of jobs that say nothing on a CPU."""


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Where the test is to run."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return request.param


def process_environment(device: str) -> dict[str, str]:
    """Of a process that is to run on that device: on "cpu" it sees no GPU."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "triton_kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    # the workspace that cuBLAS needs to add up in one order when it is asked to
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return {**cli_environment(**more), **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}


class Done:
    """What a process did on one device; a job that failed there fails the test that asks for it."""

    def __init__(self, folder: Path, log: str):
        file = folder / "results.json"
        assert file.exists(), log[-4000:]
        self.results: dict[str, Any] = json.loads(file.read_text())
        self.log = log

    def __getitem__(self, job: str) -> dict[str, Any]:
        if job not in self.results:
            pytest.fail(f"the process on {self.results['device']} ended before {job}:\n{self.log[-4000:]}")
        found = self.results[job]
        if "error" in found:
            pytest.fail(f"{job} on {self.results['device']}:\n{found['error'][-4000:]}")
        return found


def start(folder: Path, answers: Path, device: str) -> subprocess.Popen:
    """A process that does all jobs that make sense on the device."""
    has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None
    names = [name for name in work.JOBS if has_bitsandbytes or name != "qlora"]
    if device == "cpu":
        names = [name for name in names if not any(word in name for word in ON_GPU_ALONE)]
    else:  # what it is compared with is the CPU's
        names = [name for name in names if not name.endswith(" split")]
    folder.mkdir()
    command = [sys.executable, str(WORK), str(folder), str(answers), *names]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, env=process_environment(device), stdout=log, stderr=subprocess.STDOUT)


@pytest.fixture(scope="session")
def processes(request, tmp_path_factory) -> Iterator[Callable[[str], Done]]:
    """What a device did, once it has; where tests of a GPU are among those chosen, both devices work at once."""
    folder = tmp_path_factory.mktemp("work")
    on_gpu = torch.cuda.is_available() and any(item.get_closest_marker("gpu") for item in request.session.items)
    answers = folder / "cpu" / "asked" / "store"
    running = {device: start(folder / device, answers, device) for device in ("cpu", *["cuda"] * on_gpu)}

    def finished(device: str) -> Done:
        running[device].wait(timeout=500)
        return Done(folder / device, (folder / device / "log").read_text())

    yield finished
    for process in running.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def on_cpu(processes) -> Done:
    """What the CPU did, the references among it."""
    return processes("cpu")


@pytest.fixture(scope="session")
def on_cuda(processes) -> Done:
    """What the GPU did, with the answers of the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return processes("cuda")


@pytest.fixture
def done(device, request) -> Done:
    """What the test's device did."""
    return request.getfixturevalue(f"on_{device}")
