"""The student writes, the teacher scores, the student learns: what is written and scored, and what a crash costs."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill._shards import Row
from distill._store_writer import StoreWriter
from distill.distributed import ALONE
from distill.encoding import encode_prompt
from distill.loss.jsd import Jsd
from distill.responses import Header, TeacherResponses
from distill.stages import _on_policy
from distill.stages._batches import plan_batches
from distill.stages._local_teacher import open_local
from distill.stages._on_policy import train_in_rounds
from distill.stages._rows import TokenRow
from distill.stages._trainer import train
from distill.stages.teach import Wanted
from distill.targets.top_k import TopKTargets
from distill.teacher.hf import Hf
from distill.training import Training
from tests.conftest import cli_environment

PROMPTS = [f"How much is {a} + {b}?" for a in range(4) for b in range(5)]
PROMPTS[7] = "Ada has 1 box with 2 pens in it and finds 2 more. How many pens does she have?"


def other_than(teacher):
    """The teacher with other random weights: it speaks the same tokens and says something else."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    torch.manual_seed(3)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1)
    return model, AutoTokenizer.from_pretrained(teacher)


def off_policy(tokenizer, folder):
    """A store: the training as it would be off-policy, 20 prompts, each answered 7 by a teacher who knows nothing."""
    folder.mkdir()
    sizes = {"vocab_size": len(tokenizer), "kept": 16, "num_rows": len(PROMPTS)}
    header = Header(teacher="t", engine="e", dtype="f", kind="top_k", **sizes)
    writer = StoreWriter(folder, header, [range(len(PROMPTS))])
    for numbers in writer.missing():
        rows = []
        for n in numbers:
            prompt = encode_prompt(tokenizer, PROMPTS[n])
            answer = [*tokenizer("7", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            S = len(answer)
            half = np.full(S, np.log(0.5), np.float32)
            ids, logprobs = np.tile(np.arange(16, dtype=np.int32), (S, 1)), np.full((S, 16), -np.log(32), np.float32)
            targets = TopKTargets(ids, logprobs, half, half, half)
            rows.append(Row(n, "7", "teacher", np.array(prompt + answer, np.int32), len(prompt), targets))
        writer.write(rows)
    writer.finish()


def rows_in(folder):
    """The rows of a store, to train on."""
    store = TeacherResponses(folder)
    return [TokenRow(n, *store.lengths(n), store) for n in range(len(store))]


@pytest.fixture
def student(tiny_teacher):
    return other_than(tiny_teacher)


@pytest.fixture
def base(student, tmp_path):
    off_policy(student[1], tmp_path / "base")
    return rows_in(tmp_path / "base")


def in_rounds(
    student,
    base,
    teacher,
    tmp_path,
    together=ALONE,
    each_scores=True,
    live=False,
    on_scored=lambda rows: None,
    **options,
):
    """Trains with four rounds of two steps and remembers every batch that was trained on and every store opened.

    `on_scored` is called before the teacher scores rows in this process.
    """
    model, tokenizer = student
    options = {"on_policy": 1.0, "on_policy_rounds": 4, "on_policy_max_new_tokens": 12, **options}
    given = {"batch_size": 5, "max_steps": 8, "learning_rate": 1e-2, "bf16": False, "logging_steps": 1}
    training = Training(**{**given, **options})
    plan = plan_batches([r.length for r in base], batch_size=training.batch_size, seed=0, epochs=1, max_steps=8)
    opened, trained = [], []

    @contextmanager
    def open_teacher(folder):
        opened.append(folder.name)
        wanted = Wanted(kind="top_k", prompt_targets=False, temperature=1.0, seed=0)
        with open_local(Hf(kind="hf", model=str(teacher), top_k=16), wanted, folder) as engine:
            real = engine.with_targets
            engine.with_targets = lambda rows: on_scored(rows) or real(rows)
            yield engine

    def train_up_to(rows, plan, stop_after=None):
        trained.append((list(rows), plan, stop_after))
        return train(
            model,
            rows,
            Jsd(kind="jsd"),
            training,
            plan,
            seed=0,
            pad_id=tokenizer.pad_token_id,
            folder=tmp_path / "trainer",
            label="test",
            live_teacher=beside,
            stop_after=stop_after,
            together=together,
        )

    beside = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).requires_grad_(False) if live else None
    result = train_in_rounds(
        model,
        tokenizer,
        base,
        training,
        plan,
        seed=0,
        folder=tmp_path,
        open_teacher=None if live else open_teacher,
        train=train_up_to,
        each_scores=each_scores,
        together=together,
    )
    return result, trained, opened, plan


def test_each_round_is_what_the_student_said_at_its_start_scored_by_the_teacher(student, base, tiny_teacher, tmp_path):
    result, trained, opened, _ = in_rounds(student, base, tiny_teacher, tmp_path, on_policy_temperature=0.0)
    assert [stop for _, _, stop in trained] == [2, 4, 6, None]
    assert opened == [f"round-{n:03d}-scored" for n in range(4)]
    assert result.resumed_from_step is None, "nothing was interrupted"
    assert [point["step"] for point in result.curve] == list(range(1, 9))
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32).double()
    for number in range(4):
        written = TeacherResponses(tmp_path / f"round-{number:03d}-written")
        scored = TeacherResponses(tmp_path / f"round-{number:03d}-scored")
        assert written.summary["sources"] == {"student": len(written)}
        for row in range(len(written)):
            ids = scored[row].input_ids_T
            assert np.array_equal(ids, written[row].input_ids_T)
            logits = teacher(torch.tensor(ids)[None].long()).logits[0, written[row].prompt_length - 1 : -1]
            expected = torch.log_softmax(logits, dim=-1)
            targets = scored[row].targets
            nexts = expected[torch.arange(len(expected)), torch.tensor(ids[written[row].prompt_length :]).long()]
            torch.testing.assert_close(torch.tensor(targets.next_S).double(), nexts, rtol=0, atol=1e-4)
            likely = expected.gather(1, torch.tensor(targets.token_ids_SK).long())
            assert (torch.tensor(targets.logprobs_SK).double() - likely).abs().max() < 0.1
    # weights of the moment: greedy answers of later rounds are not those of the first
    texts = [[TeacherResponses(tmp_path / f"round-{n:03d}-written")[0].text] for n in (0, 3)]
    assert texts[0] != texts[1]


def test_the_first_round_is_the_untrained_students_greedy_answer(student, base, tiny_teacher, tmp_path):
    model, _ = student
    prompt = torch.tensor(np.array(base[0].read()[0][: base[0].prompt_length])).long()[None]
    expected = model.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()
    *_, plan = in_rounds(student, base, tiny_teacher, tmp_path, on_policy_temperature=0.0)
    asked = sorted({int(row) for row in plan.batches[:2].reshape(-1)})
    written = TeacherResponses(tmp_path / "round-000-written")
    assert written[asked.index(0)].input_ids_T.tolist() == expected


def test_a_long_prompt_takes_no_room_from_the_others(student, base, tiny_teacher, tmp_path):
    """One prompt leaves two tokens of training.max_length; the answers to all others are as long as ever."""
    most = base[7].prompt_length + 2
    in_rounds(student, base, tiny_teacher, tmp_path, on_policy_temperature=0.0, max_length=most)
    stores = [TeacherResponses(folder) for folder in sorted(tmp_path.glob("round-*-written"))]
    lengths = {store.lengths(row) for store in stores for row in range(len(store))}
    # a random student does not end by itself
    assert len(lengths) > 1 and all(tokens - prompt == min(12, most - prompt) for tokens, prompt in lengths)


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_share_of_each_batch_is_the_students(student, base, tiny_teacher, tmp_path, share):
    _, trained, _, plan = in_rounds(student, base, tiny_teacher, tmp_path, on_policy=share)
    rows, final, _ = trained[-1]
    for planned, batch in zip(plan.batches, final.batches, strict=True):
        own = [position for position in batch if rows[position].store is not base[0].store]
        assert len(own) == round(share * 5)
        for before, after in zip(planned, batch, strict=True):
            prompt = rows[after].read()[0][: rows[after].prompt_length]
            assert np.array_equal(prompt, base[before].read()[0][: base[before].prompt_length])


def test_an_interrupted_training_writes_and_scores_nothing_twice(tiny_teacher, tiny_run_arguments, tmp_path):
    """SIGKILL as soon as the second round is being trained; the same command ends with the same weights."""
    arguments = [
        *tiny_run_arguments,
        "loss=jsd",
        "compression=[]",
        "baselines=[]",
        "until=train",
        "training.on_policy=0.5",
        "training.on_policy_rounds=3",
        "training.on_policy_max_new_tokens=8",
    ]

    def start(folder):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "distill", *arguments]
        environment = cli_environment(OMP_NUM_THREADS="1")
        return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _, said = start(whole).communicate(timeout=200)
    process = start(cut)
    deadline = time.monotonic() + 200
    while not list(cut.glob("outputs/store/student/*.scratch/round-001-scored/summary.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (first_round,) = cut.glob("outputs/store/student/*.scratch/round-000-scored/shard-00000.bin")
    before = os.stat(first_round)
    link = tmp_path / "first_round"
    os.link(first_round, link)  # survives the tidying at the end
    _, said = start(cut).communicate(timeout=200)
    assert os.stat(link).st_mtime_ns == before.st_mtime_ns, "the first round was scored again"
    weights = [next(f.glob("outputs/store/student/*/checkpoint/model.safetensors")).read_bytes() for f in (whole, cut)]
    assert weights[0] == weights[1], said
    run = max((cut / "outputs/quickstart").iterdir())
    record = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
    assert next(line for line in record if line.get("name") == "train student")["resumed_from_step"] >= 2
    left = sorted(path.name for path in cut.glob("outputs/store/student/*/round-*"))
    assert left == [f"round-{number:03d}-scored" for number in range(3)]


def test_the_first_answers_are_written_where_the_student_will_be_trained(student, monkeypatch):
    """No trainer has moved it yet; "meta" stands for a device that is not the CPU."""
    model, _ = student
    monkeypatch.setattr(_on_policy, "default_device", lambda: "meta")
    _on_policy._to_where_it_runs(model)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
