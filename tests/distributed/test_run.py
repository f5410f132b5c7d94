"""`torchrun … -m distill`: one run folder, one voice, one end."""

import json
import os
import signal
import time

import pytest

from tests.distributed.processes import TRAINING, alone, ended, pair, torchrun
from tests.distributed.training import make_stores

pytestmark = pytest.mark.slow

DISTILL = ["-m", "distill"]


@pytest.fixture(scope="module")
def arguments(tiny_run_arguments):
    return [*tiny_run_arguments, "compression=[bf16]", "compression.bf16.max_kl_nats=5", "training.bf16=false"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, arguments):
    """A whole run of two processes, and what they said."""
    folder = tmp_path_factory.mktemp("run")
    ran = torchrun([*DISTILL, *arguments, "training.sharding=full", "baselines=[]"], folder)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder, ran.stderr


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def stages(run):
    return {event["name"]: event for event in lines(run / "record.jsonl") if event["event"] == "stage"}


def store_of(finished):
    return finished[0] / "outputs" / "store"


def the_store_of(finished):
    """The teacher is asked once."""
    return {"DISTILL_STORE": str(store_of(finished))}


def test_two_processes_leave_one_run(finished):
    folder, said = finished
    (run,) = (folder / "outputs" / "quickstart").iterdir()
    assert (run / "report.html").stat().st_size > 0
    events = lines(run / "record.jsonl")
    assert [event["event"] for event in events].count("start") == 1
    names = [event["name"] for event in events if event["event"] == "stage"]
    assert len(names) == len(set(names))
    assert said.count("train student                made in") == 1 and said.count("Report: ") == 1
    scores = json.loads((run / "scores.json").read_text())
    assert all(model["verified"] for model in scores["models"] if model["kind"] == "package")


def test_the_record_says_how_many_trained_and_on_what(finished):
    folder, _ = finished
    (run,) = (folder / "outputs" / "quickstart").iterdir()
    trained = stages(run)["train student"]
    assert (trained["world_size"], trained["sharding"]) == (2, "full")
    assert stages(run)["teach"]["world_size"] == 1
    made = folder / trained["made"]
    curve = lines(made / "curve.jsonl")
    first, second = (lines(made / "rows" / f"rank-00{rank}.jsonl") for rank in range(2))
    assert [line["step"] for line in first] == [line["step"] for line in second] == list(range(1, 13))
    assert curve[-1]["step"] == 12
    # 40 rows in batches of 8: the first five batches are one epoch, in which no row comes twice
    epoch = [row for of in (first, second) for line in of[:5] for row in line["rows"]]
    assert len(epoch) == 40 and sorted(epoch) == list(range(40))


def test_accelerate_launch_starts_the_same(finished, tmp_path, arguments):
    typed = [*arguments, "baselines=[]", "until=train", "training.max_steps=3"]
    flags = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    launch = ["-m", "accelerate.commands.launch", *flags, "--main_process_port=0", *DISTILL]
    ran = alone([*launch, *typed], tmp_path, **the_store_of(finished))
    assert ran.returncode == 0, ran.stderr[-3000:]
    (run,) = (tmp_path / "outputs" / "quickstart").iterdir()
    assert stages(run)["train student"]["world_size"] == 2


def test_one_process_reuses_what_two_have_made(finished, run_cli, arguments):
    folder, _ = finished
    ran = run_cli(*arguments, "baselines=[]", "until=train", cwd=folder, OMP_NUM_THREADS="1")
    assert ran.returncode == 0, ran.stderr
    assert "train student                reused" in ran.stderr


def test_both_write_and_score_what_the_student_answers(tmp_path, tiny_run_arguments):
    """Through the whole command; that it is what one process does, tests/distributed/test_on_policy.py shows."""
    rounds = ["training.on_policy=0.5", "training.on_policy_rounds=2", "training.on_policy_max_new_tokens=8"]
    own = ["loss=jsd", "training.bf16=false", *rounds]
    typed = [*tiny_run_arguments, *own, "baselines=[]", "compression=[]", "until=train"]
    made = {}
    for size, start in ((1, alone), (2, torchrun)):
        folder = tmp_path / str(size)
        folder.mkdir()
        ran = start([*DISTILL, *typed], folder)
        assert ran.returncode == 0, ran.stderr[-3000:]
        (run,) = (folder / "outputs" / "quickstart").iterdir()
        trained = stages(run)["train student"]
        assert trained["world_size"] == size
        made[size] = folder / trained["made"]
    assert trained["sharding"] == "none"
    losses = {size: [point["loss_nats"] for point in lines(folder / "curve.jsonl")] for size, folder in made.items()}
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    # 6 steps of 4 own answers are shared out as shards of at most 12
    assert len(list((made[2] / "round-001-scored").glob("shard-*.bin"))) == 2


def test_a_batch_that_cannot_be_divided_is_refused_once_and_writes_nothing(tmp_path, arguments):
    codes, said = ended(pair([*DISTILL, *arguments, "training.batch_size=9"], tmp_path))
    assert codes == [2, 2]
    assert "training.batch_size=9 cannot be divided over 2 processes" in said[0] and "multiple of 2" in said[0]
    assert "training.batch_size=8 or training.batch_size=10" in said[0]
    assert said[1] == ""
    assert not (tmp_path / "outputs").exists()


def test_a_fault_is_said_once_and_ends_all(finished, tmp_path, arguments):
    broken = ["training.learning_rate=1e30", "training.warmup_steps=0", "until=train", "baselines=[]"]
    codes, said = ended(pair([*DISTILL, *arguments, *broken], tmp_path, **the_store_of(finished)))
    assert codes == [1, 1]
    assert said[0].count("Lower training.learning_rate") == 1
    assert said[1] == ""
    (run,) = (tmp_path / "outputs" / "quickstart").iterdir()
    assert (run / "logbook.md").read_text().count("Stopped: ") == 1


def test_a_fault_of_one_process_alone_ends_all(tmp_path):
    """The others are in a collective that it will never come to."""
    make_stores(tmp_path / "stores")
    case = {"folder": "one", "student": "tied", "steps": 10, "fails_in": 1}
    started = time.monotonic()
    codes, said = ended(pair([TRAINING, ".", json.dumps([case])], tmp_path))
    assert codes == [1, 1]
    assert "this process alone cannot go on" not in said[1]  # the leader says it
    assert time.monotonic() - started < 90
    assert not (tmp_path / "one" / "curve.json").exists()


def test_processes_that_plan_other_batches_are_refused(tmp_path):
    """Each would learn from rows of its own choice, and nothing would fail."""
    make_stores(tmp_path / "stores")
    case = {"folder": "one", "student": "tied", "steps": 10, "plans_alone": True}
    codes, said = ended(pair([TRAINING, ".", json.dumps([case])], tmp_path))
    assert codes == [1, 1]
    assert "Processes 1 plan other batches than process 0" in said[0]
    assert not (tmp_path / "one" / "trainer").exists()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Ended by SIGTERM.")]
)
def test_an_interrupt_ends_all_with_its_code(finished, tmp_path, arguments, number, code, word):
    own_student = f"training.learning_rate={number}e-5"
    forever = [own_student, "training.max_steps=100000", "training.save_steps=5", "until=train", "baselines=[]"]
    running = pair([*DISTILL, *arguments, *forever], tmp_path, **the_store_of(finished))
    before, until = set(store_of(finished).rglob("checkpoint-*/complete")), time.monotonic() + 90
    while not set(store_of(finished).rglob("checkpoint-*/complete")) - before and time.monotonic() < until:
        time.sleep(0.1)
    for process in running:
        os.kill(process.pid, number)
    codes, said = ended(running)
    assert codes == [code, code]
    assert said[0].count(word) == 1
    assert said[1] == ""
