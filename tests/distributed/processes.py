"""Starts one Python program as two processes: through torchrun, or bare, with the variables that it would set."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from distill import distributed
from distill.distributed import World
from distill.errors import DistillError
from tests.conftest import ROOT, cli_environment

TRAINING = str(Path(__file__).with_name("training.py"))
LAUNCHER = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


def environment(**more: str) -> dict[str, str]:
    there = {name: value for name, value in cli_environment().items() if name not in LAUNCHER}
    path = os.pathsep.join([str(ROOT), str(ROOT / "triton_kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**there, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def torchrun(
    arguments: Sequence[str], cwd: Path, *, processes: int = 2, timeout: float = 240, **more: str
) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 …`, finished."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=timeout)


def alone(
    arguments: Sequence[str], cwd: Path, *, timeout: float = 240, **more: str
) -> subprocess.CompletedProcess[str]:
    """One process, finished."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=timeout)


def pair(arguments: Sequence[str], cwd: Path, **more: str) -> list[subprocess.Popen[str]]:
    """Two processes that nobody looks after, running; their exit codes are their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def end_together(run: Callable[[World], None]) -> NoReturn:
    """Runs one of several processes, joined, and ends it as the command line would."""
    code, world = 1, distributed.join()
    try:
        run(world)
        code = 0
    except DistillError as failed:
        if not world.leads:
            world.fail(failed.exit_code, str(failed))
        print(failed, file=sys.stderr)
        code = failed.exit_code
    finally:
        world.leave(code)
    sys.exit(code)


def ended(processes: Sequence[subprocess.Popen[str]], *, timeout: float = 120) -> tuple[list[int], list[str]]:
    """Exit codes and what was said; none is left behind, whatever happens."""
    try:
        said = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said
