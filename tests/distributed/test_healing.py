"""Two gloo processes heal a four-bit package as one does: the same curve, the same files, from any checkpoint."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.processes import alone, ended, pair, torchrun

pytestmark = pytest.mark.slow

DISTILL = ["-m", "distill"]
STEPS = 12
# float32 sums taken in another order
SAME = 1e-5


@pytest.fixture(scope="module")
def arguments(tiny_run_arguments):
    packages = ["compression=[bf16,bnb_nf4_lora]", f"compression.bnb_nf4_lora.max_steps={STEPS}", "until=compress"]
    often = ["training.logging_steps=1", "training.save_steps=2"]
    return [*DISTILL, *tiny_run_arguments, *packages, *often, "baselines=[]", "training.bf16=false"]


@pytest.fixture(scope="module")
def healed(tmp_path_factory, arguments):
    """A student that one process trained in `student/`, and healed in `one/`."""
    folder = tmp_path_factory.mktemp("healed")
    run(alone, [*arguments, "until=train"], folder / "student")
    again(folder, "one")
    run(alone, arguments, folder / "one")
    return folder


def run(start, typed, folder):
    folder.mkdir(exist_ok=True)
    ran = start(typed, folder)
    assert ran.returncode == 0, ran.stderr[-3000:]


def again(folder, name):
    """The trained student in a folder of its own, with nothing made of it yet."""
    shutil.copytree(folder / "student" / "outputs" / "store", folder / name / "outputs" / "store")


def package_of(folder):
    (made,) = (file.parent for file in (folder / "outputs/store/package").glob("*/curve.jsonl"))
    return made


def losses(folder):
    return np.array([json.loads(line)["loss_nats"] for line in (package_of(folder) / "curve.jsonl").open()])


def stages(folder):
    run = sorted((folder / "outputs" / "quickstart").iterdir())[-1]
    events = map(json.loads, (run / "record.jsonl").read_text().splitlines())
    return {event["name"]: event for event in events if event["event"] == "stage"}


def assert_same(found, expected):
    """Curve and files of two packages. The adapter is rounded otherwise; all other bytes are the same."""
    assert len(losses(expected)) == STEPS and losses(expected)[-1] < losses(expected)[0]
    np.testing.assert_allclose(losses(found), losses(expected), rtol=SAME)
    ours, theirs = package_of(found), package_of(expected)
    names = sorted(str(file.relative_to(theirs)) for file in theirs.rglob("*") if file.is_file())
    # of several processes each writes which rows it learnt from, and keeps its own threads
    of_processes = {"rows/rank-000.jsonl", "rows/rank-001.jsonl", "threads.json"}
    there = {str(file.relative_to(ours)) for file in ours.rglob("*") if file.is_file()}
    assert there - of_processes == set(names) - of_processes
    for name in (name for name in names if name.startswith("package/")):
        if not name.endswith("adapter_model.safetensors"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
            continue
        weights = load_file(theirs / name)
        assert load_file(ours / name).keys() == weights.keys() and weights
        for key, weight in load_file(ours / name).items():
            torch.testing.assert_close(weight, weights[key], rtol=0, atol=SAME, msg=key)


def test_two_processes_heal_what_one_heals(healed, arguments):
    folder = healed
    again(folder, "two")
    # whatever cut the student while it was trained: the four-bit one is whole in each process
    run(torchrun, [*arguments, "training.sharding=full"], folder / "two")
    made = stages(folder / "two")
    assert made["train student"]["reused"]
    healing = made["compress bnb_nf4_lora"]
    assert (healing["world_size"], healing["sharding"]) == (2, "none") and made["compress bf16"]["world_size"] == 1
    rows = [(package_of(folder / "two") / "rows" / f"rank-00{rank}.jsonl").read_text() for rank in range(2)]
    learnt = [[json.loads(line)["rows"] for line in text.splitlines()] for text in rows]
    assert [len(of) for of in learnt] == [STEPS, STEPS] and all(len(step) == 4 for of in learnt for step in of)
    assert_same(folder / "two", folder / "one")
    (handed_out,) = (folder / "two" / "outputs" / "quickstart").glob(
        "*/packages/bnb_nf4_lora/adapter_model.safetensors"
    )
    assert handed_out.stat().st_size > 0


@pytest.mark.parametrize("go_on", [alone, torchrun], ids=["alone", "together"])
def test_a_killed_healing_goes_on_under_any_number_of_processes(healed, arguments, go_on):
    there = healed / f"killed-{go_on.__name__}"
    again(healed, there.name)
    processes, until = pair(arguments, there), time.monotonic() + 120
    while not list(there.glob("outputs/store/package/*.scratch/trainer/checkpoint-*/complete")):
        assert time.monotonic() < until and all(process.poll() is None for process in processes)
        time.sleep(0.01)
    for process in processes:
        process.kill()
    ended(processes)
    assert not list(there.glob("outputs/store/package/*/curve.jsonl"))
    run(go_on, arguments, there)
    assert 2 <= stages(there)["compress bnb_nf4_lora"]["resumed_from_step"] < STEPS
    assert_same(there, healed / "one")
