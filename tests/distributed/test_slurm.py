"""Hydra's submitit launcher composes a job of its own for every run of a sweep; here on this machine, for real."""

import json

import pytest

from tests.distributed.processes import alone

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'distill[slurm]'")
pytestmark = pytest.mark.slow


def test_a_submitted_job_leaves_the_run_that_a_started_one_leaves(tmp_path, tiny_run_arguments):
    submitted = ["-m", "distill", "-m", "hydra/launcher=submitit_local", *tiny_run_arguments, "until=teach"]
    ran = alone(submitted, tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (run,) = (tmp_path / "outputs" / "quickstart").iterdir()
    events = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
    assert [event["name"] for event in events if event["event"] == "stage"] == ["teach"]
    assert list((tmp_path / "outputs" / ".submitit").glob("*/*_submitted.pkl"))  # it was a job of its own
