"""What srun and submitit tell a process that they started as one of several tasks, in torchrun's words.

Three places hold SLURM's variables, and only one of them is a task among several:
  the batch script     SLURM_NTASKS=16 and SLURM_PROCID=0, but one process: nobody would come
  an interactive shell likewise, and some clusters hand it the variables of a step as well
  a task of `srun`     SLURM_STEP_NUM_TASKS of them, each with its SLURM_PROCID
submitit's local executor numbers its tasks in variables of its own.

Source: the output environment variables of srun and sbatch, https://slurm.schedmd.com/srun.html, sbatch.html;
submitit 1.5, `submitit.JobEnvironment`.
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Steps that SLURM makes by itself (batch script, interactive shell) have numbers from here on."""
PORTS = range(15000, 30000)
"""Below what Linux gives away to outgoing connections (32768 on), above what services listen on."""


@dataclass(frozen=True)
class Task:
    """One of `size` processes of one job: its number in the job and on its node, and where number 0 is found."""

    rank: int
    size: int
    local_rank: int
    host: str
    port: int

    def announce(self) -> None:
        """Sets torchrun's variables, from which `distributed.join` reads. A MASTER_ADDR or MASTER_PORT there stays."""
        if self.size == 1:
            return
        os.environ |= {"RANK": str(self.rank), "WORLD_SIZE": str(self.size), "LOCAL_RANK": str(self.local_rank)}
        os.environ.setdefault("MASTER_ADDR", self.host)
        os.environ.setdefault("MASTER_PORT", str(self.port))


ONLY = Task(0, 1, 0, "localhost", PORTS[0])


def srun_task(environment: Mapping[str, str] = os.environ, *, typed_by_a_person: bool | None = None) -> Task:
    """The task that `srun` started this process as; `ONLY` where srun did not, or a launcher inside it did."""
    if "WORLD_SIZE" in environment or "RANK" in environment:
        return ONLY
    if not {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"} <= environment.keys():
        return ONLY
    # srun gives a terminal to `srun --pty bash` alone
    at_terminal = _at_terminal() if typed_by_a_person is None else typed_by_a_person
    if at_terminal or int(environment["SLURM_STEP_ID"]) >= FIRST_SPECIAL_STEP:
        return ONLY
    return Task(
        rank=int(environment["SLURM_PROCID"]),
        size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=_device(environment, int(environment.get("SLURM_LOCALID") or 0)),
        host=first_host(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "localhost"),
        port=_port(int(environment.get("SLURM_JOB_ID") or 0), int(environment["SLURM_STEP_ID"])),
    )


def submitted_task(environment: Mapping[str, str] = os.environ) -> Task:
    """The task that submitit started this process as; `ONLY` outside its jobs."""
    executor = environment.get("SUBMITIT_EXECUTOR")
    if executor == "slurm":
        return srun_task(environment, typed_by_a_person=False)
    if executor != "local" or "SUBMITIT_LOCAL_GLOBALID" not in environment:
        return ONLY
    return Task(
        rank=int(environment["SUBMITIT_LOCAL_GLOBALID"]),
        size=int(environment["SUBMITIT_LOCAL_NTASKS"]),
        local_rank=_device(environment, int(environment["SUBMITIT_LOCAL_LOCALID"])),
        host="localhost",
        port=_port(int(environment["SUBMITIT_LOCAL_JOB_ID"]), 0),
    )


def first_host(nodelist: str) -> str:
    """The first name of SLURM's short form: gpu[007-009,12],cpu1 → gpu007."""
    [first] = re.findall(r"^(?:[^,\[]|\[[^\]]*\])+", nodelist)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def _device(environment: Mapping[str, str], local_rank: int) -> int:
    """Number of this task's GPU among those it sees: where each task sees its own only, that is 0."""
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return 0 if len(visible) == 1 else local_rank


def _port(job: int, step: int) -> int:
    # every task has to come to the same number by itself; jobs that share a node get neighbours, not the same
    return PORTS[(job * 7 + step) % len(PORTS)]


def _at_terminal() -> bool:
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
