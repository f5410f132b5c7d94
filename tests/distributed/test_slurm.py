"""Hydra's submitit launcher: jobs of a sweep, and tasks of a job, as processes of their own.

The local executor runs here for real. There is no SLURM here: the batch scripts are compared by content, and run by
the stand-in of `stand_in_slurm`, which starts tasks with the variables that srun's manual names.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed import stand_in_slurm
from tests.distributed.processes import ended, environment

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'distill[slurm]'")
pytestmark = pytest.mark.slow

LOCAL = ["-m", "hydra/launcher=submitit_local"]
SLURM = ["-m", "hydra/launcher=submitit_slurm"]
DIVERGES = ["training.learning_rate=1e30", "training.warmup_steps=0"]
FOREVER = ["training.max_steps=100000", "training.save_steps=5"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Shared by the tests: the teacher is asked by whichever comes first."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def start(tmp_path, store, tiny_run_arguments):
    """Starts python -m distill in an empty folder; what it says on both streams can be read from it."""

    def start(*arguments, **more):
        command = [sys.executable, "-m", "distill", *tiny_run_arguments, "baselines=[]", *arguments]
        there = environment(**{"DISTILL_STORE": str(store), **more})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=there, **pipes)

    return start


@pytest.fixture
def cluster(tmp_path):
    """The variables under which sbatch, srun and sacct are found, and leave the script they were given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in_slurm.install(folder)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SLURM_SEEN": str(tmp_path / "script.sh")}


def finish(process, *, timeout=240):
    [code], [said] = ended([process], timeout=timeout)
    return code, said


def runs(folder, recipe="quickstart"):
    return sorted((folder / "outputs" / recipe).iterdir())


def stages(run):
    events = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
    return {event["name"]: event for event in events if event["event"] == "stage"}


def directives(cluster):
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", Path(cluster["SLURM_SEEN"]).read_text(), re.MULTILINE))


def test_a_sweep_runs_its_jobs_at_once_and_asks_the_teacher_once(tmp_path, start):
    code, said = finish(start(*LOCAL, "loss=forward_kl,jsd", "until=train", DISTILL_STORE=str(tmp_path / "own")))
    assert code == 0, said
    found = [stages(run) for run in runs(tmp_path)]
    assert sorted(of["teach"]["reused"] for of in found) == [False, True]
    assert len({of["teach"]["fingerprint"] for of in found}) == 1
    assert [of["train student"]["reused"] for of in found] == [False, False]
    assert len({of["train student"]["fingerprint"] for of in found}) == 2
    assert len(list((tmp_path / "outputs" / ".submitit").glob("*/*_submitted.pkl"))) == 2  # each a job of its own


def test_a_job_that_fails_ends_with_its_own_words(tmp_path, start):
    code, said = finish(start(*LOCAL, "until=train", *DIVERGES))
    assert code == 1
    [run] = runs(tmp_path)
    assert f"outputs/quickstart/{run.name}: Weights are no longer finite" in said
    assert "Lower training.learning_rate" in said
    assert "fault of distill" not in said and "Traceback" not in said
    assert (run / "logbook.md").read_text().count("Stopped: ") == 1


def test_the_tasks_of_a_job_train_together(tmp_path, start):
    together = ["hydra.launcher.tasks_per_node=2", "until=train", "training.bf16=false", "training.max_steps=6"]
    code, said = finish(start(*LOCAL, *together))
    assert code == 0, said
    [run] = runs(tmp_path)
    assert stages(run)["train student"]["world_size"] == 2
    results = list((tmp_path / "outputs" / ".submitit").glob("*/*_result.pkl"))
    assert len(results) == 2  # without its result, submitit takes a task for killed


def test_the_tasks_of_a_job_fail_together(tmp_path, start):
    code, said = finish(
        start(*LOCAL, "hydra.launcher.tasks_per_node=2", "until=train", "training.bf16=false", *DIVERGES)
    )
    assert code == 1
    assert "Weights are no longer finite" in said and "fault of distill" not in said
    assert len(runs(tmp_path)) == 1


def signalled(tmp_path, store, process):
    """Sends the running job what SLURM sends shortly before a job's end, once it has kept a checkpoint; ends it."""
    tasks = []
    try:
        until = time.monotonic() + 200
        while not list(store.rglob("*.scratch/**/checkpoint-*/complete")):
            assert process.poll() is None and time.monotonic() < until, "no checkpoint came"
            time.sleep(0.1)
        [controller] = [file.parent.name for file in (tmp_path / "outputs" / ".submitit").glob("*/*_submitted.pkl")]
        tasks = [int(task) for task in Path(f"/proc/{controller}/task/{controller}/children").read_text().split()]
        for task in reversed(tasks):
            os.kill(task, signal.SIGUSR2)
        return finish(process)
    finally:
        process.kill()
        for task in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(task, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the task's process in /proc")
def test_a_job_whose_time_is_over_says_so(tmp_path, start):
    own = tmp_path / "own"
    # submitit takes a job of ten minutes for timed out at once, a longer one for preempted
    limits = ["hydra.launcher.timeout_min=10", "+hydra.launcher.max_num_timeout=0"]
    process = start(*LOCAL, *limits, "until=train", *FOREVER, DISTILL_STORE=str(own))
    code, said = signalled(tmp_path, own, process)
    assert code == 1
    assert "its time (hydra.launcher.timeout_min) is over" in said and "the same command goes on" in said
    assert "fault of distill" not in said and "Traceback" not in said
    [run] = runs(tmp_path)
    assert "timeout_min" in (run / "logbook.md").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the task's process in /proc")
def test_a_job_that_is_sent_off_again_goes_on_with_all_its_tasks(tmp_path, start):
    own = tmp_path / "own"
    steps = ["training.max_steps=60", "training.save_steps=5", "training.bf16=false"]
    process = start(*LOCAL, "hydra.launcher.tasks_per_node=2", "until=train", *steps, DISTILL_STORE=str(own))
    code, said = signalled(tmp_path, own, process)
    assert code == 0, said
    stopped, went_on = runs(tmp_path)
    assert "train student" not in stages(stopped)
    trained = stages(went_on)["train student"]
    assert trained["world_size"] == 2 and trained["resumed_from_step"] >= 5


def test_teach_and_train_ask_for_different_nodes(start, cluster):
    refuses = {"SLURM_REFUSES": "invalid partition specified: a100", **cluster}
    teach = [
        "until=teach",
        "hydra.launcher.partition=big",
        "hydra.launcher.gpus_per_node=8",
        "hydra.launcher.timeout_min=600",
        "hydra.launcher.setup=['module load cuda']",
    ]
    code, said = finish(start(*SLURM, *teach, **refuses))
    assert code == 1
    assert "was not sent off" in said and "invalid partition specified: a100" in said and "fault of distill" not in said
    asked = directives(cluster)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("1", "1", "8")
    assert (asked["partition"], asked["time"], asked["job-name"]) == ("big", "600", "distill")
    lines = Path(cluster["SLURM_SEEN"]).read_text().splitlines()
    [command] = [line for line in lines if line.startswith("srun ")]
    assert lines.index("module load cuda") < lines.index(command)
    assert f"{sys.executable} -u -m submitit.core._submit" in command

    train = [
        "until=train",
        "hydra.launcher.partition=small",
        "hydra.launcher.nodes=2",
        "hydra.launcher.tasks_per_node=8",
        "hydra.launcher.gpus_per_node=8",
        "+hydra.launcher.additional_parameters={requeue: true, mail-type: END}",
        "loss=forward_kl,jsd",
    ]
    code, said = finish(start(*SLURM, *train, **refuses))
    assert code == 1 and "was not sent off" in said
    asked = directives(cluster)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("2", "8", "8")
    assert (asked["partition"], asked["mail-type"], asked["array"]) == ("small", "END", "0-1%2")
    assert "#SBATCH --requeue" in Path(cluster["SLURM_SEEN"]).read_text().splitlines()


def test_tasks_on_two_nodes_train_together(tmp_path, start, cluster):
    nodes = ["hydra.launcher.nodes=2", "until=train", "training.bf16=false", "training.max_steps=7"]
    code, said = finish(start(*SLURM, *nodes, **cluster))
    assert code == 0, said
    [run] = runs(tmp_path)
    assert stages(run)["train student"]["world_size"] == 2


def test_srun_alone_starts_processes_that_know_each_other(start):
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    where = {"SLURM_STEP_NODELIST": "localhost,gpu[1-3]"}
    tasks = [start("training.batch_size=9", **step, **where, SLURM_PROCID=str(rank)) for rank in range(2)]
    codes, said = ended(tasks)
    assert codes == [2, 2]
    assert "training.batch_size=9 cannot be divided over 2 processes" in said[0] and said[1] == ""


def test_a_batch_script_does_not_wait_for_tasks_that_nobody_started(start):
    batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "gpu[1-2]"}
    code, said = finish(start("until=teach", **batch), timeout=100)
    assert code == 0 and "Run folder: " in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (SLURM, "there is no srun here"),
        (SLURM[1:], "counts under -m"),
        (LOCAL[1:], "counts under -m"),
    ],
)
def test_a_launcher_that_would_not_be_used_is_refused(tmp_path, start, arguments, said):
    code, words = finish(start(*arguments, PATH=str(Path(sys.executable).parent)))
    assert code == 2
    assert said in words and len(words.splitlines()) <= 6
    assert not (tmp_path / "outputs").exists()
