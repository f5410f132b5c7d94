"""Two gloo processes write, score and learn what one does, each its share, and go on where the other left."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.responses import TeacherResponses
from tests.distributed.processes import alone, torchrun

pytestmark = pytest.mark.slow

PROGRAM = str(Path(__file__).with_name("on_policy.py"))
STEPS, ROUNDS = 8, 4
# float32 sums in another order, after eight steps of 1e-2
SAME = 1e-4
CASES = {
    "own": {},
    "mixed": {"on_policy": 0.6, "on_policy_temperature": 0.7},
    "leader": {"each_scores": False},
    "live": {"live": True},
}
# five rows a batch cannot be divided by two
OPTIONS = {"batch_size": 4, "save_steps": 2}


def of(name, folder, **more):
    return {"folder": folder, **OPTIONS, **CASES[name], **more}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_teacher):
    """Folders `NAME-1` and `NAME-2`, trained by as many processes; `killed-N` was ended in its third round."""
    folder = tmp_path_factory.mktemp("rounds")
    for processes, start in ((1, alone), (2, torchrun)):
        cases = [of(name, f"{name}-{processes}") for name in CASES]
        cases.append(of("own", f"killed-{processes}", kill_at=2))
        ran = start([PROGRAM, str(tiny_teacher), json.dumps(cases)], folder)
        assert ran.returncode != 0 and (folder / f"live-{processes}" / "curve.json").exists(), ran.stderr[-3000:]
        assert not (folder / f"killed-{processes}" / "curve.json").exists()
    return folder


def curve(folder):
    return np.array(json.loads((folder / "curve.json").read_text()))


def weights(folder):
    return load_file(folder / "trainer" / f"checkpoint-{STEPS}" / "model.safetensors")


def texts(store):
    responses = TeacherResponses(store)
    return [responses[number].text for number in range(len(responses))]


def same_run(one, other):
    """The same answers in every round, the same losses, the same weights."""
    for number in range(ROUNDS):
        written = texts(one / f"round-{number:03d}-written")
        assert len(written) > 3 and written == texts(other / f"round-{number:03d}-written")
    np.testing.assert_allclose(curve(other), curve(one), rtol=SAME)
    for key, value in weights(one).items():
        torch.testing.assert_close(weights(other)[key], value, rtol=0, atol=SAME, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_from_the_answers_that_one_writes(trained, name):
    assert len(curve(trained / f"{name}-1")) == STEPS
    same_run(trained / f"{name}-1", trained / f"{name}-2")


def test_each_process_scores_its_share_and_nobody_anything_twice(trained):
    scored = [texts(trained / "own-2" / f"round-{number:03d}-scored") for number in range(ROUNDS)]
    asked = [json.loads((trained / "own-2" / f"asked-{rank}.json").read_text()) for rank in range(2)]
    shares = [[text for batch in of_rank for text in batch] for of_rank in asked]
    assert sorted(shares[0] + shares[1]) == sorted(text for texts in scored for text in texts)
    assert all(len(share) >= sum(map(len, scored)) // 2 - ROUNDS for share in shares)


def test_a_teacher_that_answers_all_is_asked_by_the_leader_alone(trained):
    asked = [json.loads((trained / "leader-2" / f"asked-{rank}.json").read_text()) for rank in range(2)]
    assert len(asked[0]) == ROUNDS and asked[1] == []
    for number in range(ROUNDS):
        scored = (trained / f"{name}-2" / f"round-{number:03d}-scored" for name in ("own", "leader"))
        first, second = ([TeacherResponses(store)[row].targets for row in range(4)] for store in scored)
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one.token_ids_SK, other.token_ids_SK)


def test_a_killed_run_goes_on_under_another_number_of_processes(trained, tiny_teacher):
    for processes, start in ((2, alone), (1, torchrun)):
        folder = trained / f"killed-{processes}"
        before = (folder / "round-001-scored" / "shard-00000.bin").stat().st_mtime_ns
        ran = start([PROGRAM, str(tiny_teacher), json.dumps([of("own", folder.name)])], trained)
        assert ran.returncode == 0, ran.stderr[-3000:]
        assert (folder / "round-001-scored" / "shard-00000.bin").stat().st_mtime_ns == before
        same_run(trained / "own-1", folder)
