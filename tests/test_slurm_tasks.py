"""Which processes are tasks among several, and where the first of them is found."""

import pytest

from distill._slurm_tasks import ONLY, PORTS, first_host, srun_task, submitted_task

STEP = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "gpu[007-010]",
    "SLURM_NTASKS": "32",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[009-010]",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}


def started(**variables):
    return srun_task({**STEP, **variables}, typed_by_a_person=False)


def test_a_task_of_a_step_is_one_of_the_steps_tasks():
    task = started()
    assert (task.rank, task.size, task.local_rank, task.host) == (11, 16, 3, "gpu009")
    assert task.port in PORTS


def test_all_tasks_of_a_step_come_to_one_port_and_other_steps_and_jobs_to_others():
    assert {started(SLURM_PROCID=str(rank)).port for rank in range(16)} == {started().port}
    others = [started(SLURM_STEP_ID="3"), started(SLURM_JOB_ID="1234568")]
    assert len({started().port, *(task.port for task in others)}) == 3


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},  # a batch script
        {**STEP, "SLURM_STEP_ID": "4294967290"},  # an interactive shell that some clusters start as a step
        {**STEP, "WORLD_SIZE": "1", "RANK": "0"},  # torchrun inside a step
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_what_is_no_task_among_several_runs_alone(environment):
    assert srun_task(environment, typed_by_a_person=False).size == 1


def test_a_person_at_a_terminal_is_no_task():
    assert srun_task(STEP, typed_by_a_person=True) == ONLY


def test_a_task_that_sees_its_own_gpu_alone_takes_it():
    assert started(CUDA_VISIBLE_DEVICES="3").local_rank == 0
    assert started(CUDA_VISIBLE_DEVICES="0,1,2,3").local_rank == 3


def test_submitit_tells_its_own_tasks():
    local = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "99",
        "SUBMITIT_LOCAL_NTASKS": "4",
        "SUBMITIT_LOCAL_GLOBALID": "2",
        "SUBMITIT_LOCAL_LOCALID": "2",
    }
    task = submitted_task(local)
    assert (task.rank, task.size, task.local_rank, task.host) == (2, 4, 2, "localhost")
    assert submitted_task({**STEP, "SUBMITIT_EXECUTOR": "slurm"}) == started()
    assert submitted_task(STEP) == ONLY  # srun's, not submitit's


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node1", "node1"),
        ("gpu[007-009,12],cpu1", "gpu007"),
        ("gpu[3,5-6]", "gpu3"),
        ("a-1-[02-04]-ib,b2", "a-1-02-ib"),
        ("rack[1-2]n[5-6]", "rack1n5"),
        ("login,gpu[1-2]", "login"),
    ],
)
def test_the_first_host_of_a_list(nodelist, first):
    assert first_host(nodelist) == first
