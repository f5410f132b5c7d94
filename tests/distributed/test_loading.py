"""Of a model that is cut, each process holds the leader's bits in its own part, and never more than that."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.family.known import FAMILIES
from distill.family.tiny import tiny_config
from tests.distributed.processes import TRAINING, alone, ended, pair, torchrun
from tests.small_models import random_model

pytestmark = pytest.mark.slow

LOADING = str(Path(TRAINING).with_name("loading.py"))
FAMILIES_CUT = {"gpt2": 97, "llama": 97, "gemma3": 97, "gpt_neo": 97, "bloom": 97}
"""Tokens: an odd number, so that two processes get unequal parts."""
CASES = [
    {"name": "tied weights", "student": "gpt2", "teacher": "gpt2"},
    {"name": "untied weights, and rotary frequencies that no file holds", "student": "llama", "teacher": "llama"},
    {"name": "scaled embeddings, a teacher of 16 bits", "student": "gemma3", "teacher": "gemma3"},
    {"name": "a causal mask in each block, a head of its own", "student": "gpt_neo", "teacher": "bloom"},
    {"name": "adapters", "student": "llama", "adapter": "lora"},
    {
        "name": "adapters on tied, transposed weights, norms cut apart",
        "student": "gpt2",
        "adapter": "lora",
        "bf16": True,
    },
    {"name": "the last layer and the first", "student": "llama", "layers": [2, 0]},
    {"name": "from scratch", "student": "scratch"},
    {"name": "resumed", "student": "llama", "checkpoint": "later"},
]
ORDER = [{"name": "order", "student": "llama", "sharding": sharding} for sharding in ("auto", "none")]
MEMORY = {"name": "memory", "student": "large", "teacher": "large", "dtype": "float32"}
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 8192}
SLACK = 16 << 20
"""Buffers of the collectives, and what Python made meanwhile; about a twentieth of what is at stake."""
WAIT_SECONDS = 5.0
"""For a leader that fails while it reads: a look every half second, and four for what is stuck in a collective."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with a tiny checkpoint of each family in FAMILIES_CUT, and `later`, what a trained Llama would leave."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in FAMILIES:
        if family.name in FAMILIES_CUT:
            published = {"model_type": family.model_type, **family.published[0].config}
            config = tiny_config(published, FAMILIES_CUT[family.name], num_layers=3)
            model = random_model(config, seed=0).to(torch.bfloat16 if family.name == "gemma3" else torch.float32)
            model.save_pretrained(folder / family.name)
            if family.name == "llama":
                random_model(config, seed=1).save_pretrained(folder / "later")
    return folder


@pytest.fixture(scope="module")
def compared(checkpoints):
    ran = torchrun([LOADING, ".", json.dumps([*CASES, *ORDER])], checkpoints)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return results(ran.stdout)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_parts_put_together_are_what_one_process_reads(compared, case):
    leader, other = compared[CASES.index(case)]
    assert (leader["empty"], other["empty"]) == (False, True)
    for told in (leader, other):
        assert told["student"] == [] and told["tensors"] > 10
        assert told.get("teacher", []) == []
        if case.get("teacher") == "gemma3":
            assert told["dtype"] == "torch.bfloat16"


def test_where_nothing_is_cut_all_read_after_the_leader(compared):
    """On CPUs, `auto` is `none`; only the leader's model can tell."""
    for leader, other in compared[len(CASES) :]:
        assert leader == {"leader_had_read": [False], "whole": True}
        assert other == {"leader_had_read": [True], "whole": True}


def test_a_process_holds_its_parts_and_the_leader_one_whole_model(tmp_path):
    """Four processes, a student and a live teacher of 168 MB each: 336 MB for a process that reads both."""
    for name, sizes in (("large", LARGE), ("small", {**LARGE, "hidden_size": 64})):
        config = {"model_type": "llama", "num_attention_heads": 8, "tie_word_embeddings": False, **sizes}
        # read in float32, weights of 16 bits are a process's own, and no longer pages of the file
        random_model(config, seed=0).to(torch.bfloat16).save_pretrained(tmp_path / name)
    D, I, layers, V = LARGE.values()
    block = 4 * (4 * D * D + 3 * D * I + 2 * D)
    rest = 4 * (2 * V * D + D)
    whole = layers * block + rest
    assert whole > 160e6

    # freed memory goes back to the system at once, that of a part (256 KiB) too
    ran = torchrun([LOADING, ".", json.dumps([MEMORY])], tmp_path, processes=4, MALLOC_MMAP_THRESHOLD_="65536")
    assert ran.returncode == 0, ran.stderr[-3000:]
    ((leader, *others),) = results(ran.stdout)
    parts = 2 * whole / 4
    for process in (leader, *others):
        assert process["parts"] == pytest.approx(parts, rel=1e-3)
    for other in others:
        assert other["resident"] < parts + block + SLACK
    # when the teacher comes, the parts of the student's blocks are left, and what is no block: the root is cut last
    assert leader["own"] < whole + (whole - rest) / 4 + rest + SLACK


def results(printed: str) -> list[list[dict]]:
    """What each process found, for each case."""
    return [json.loads(line) for line in printed.splitlines() if line.startswith("[{")]


def test_a_run_of_two_that_are_cut_is_the_run_of_one(tmp_path, tiny_run_arguments, tiny_teacher):
    """From the command line: half of a checkpoint's layers with an adapter, beside a teacher that stays in memory."""
    kept = [argument for argument in tiny_run_arguments if not argument.startswith("student.")]
    student = ["student=pretrained", f"student.model={tiny_teacher}", "student.layers=[1]", "adapter=lora"]
    more = ["teacher.live=true", "training.sharding=full", "training.bf16=false", "baselines=[]", "until=train"]
    curves, weights = [], []
    for start, folder in ((alone, tmp_path / "one"), (torchrun, tmp_path / "two")):
        folder.mkdir()
        ran = start(["-m", "distill", *kept, *student, *more], folder)
        assert ran.returncode == 0, ran.stderr[-3000:]
        (curve,) = (folder / "outputs" / "store").rglob("curve.jsonl")
        curves.append([json.loads(line)["loss_nats"] for line in curve.read_text().splitlines()])
        weights.append(load_file(curve.parent / "checkpoint" / "model.safetensors"))
    assert len(curves[0]) > 3 and curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("damaged", ["student", "teacher"])
def test_a_leader_that_cannot_read_ends_all_at_once(checkpoints, tmp_path, damaged):
    """The others wait for its word, not in a collective; `teacher`: they hold their parts of the student already."""
    for name in ("student", "teacher"):
        shutil.copytree(checkpoints / "llama", tmp_path / name)
    shorten(tmp_path / damaged / "model.safetensors")
    codes, _ = ended(
        pair([LOADING, ".", json.dumps([{"name": "fails", "student": "student", "teacher": "teacher"}])], tmp_path)
    )
    assert codes == [1, 1]
    failed, told = (float((tmp_path / f"fails-{rank}.time").read_text()) for rank in range(2))
    assert told - failed < WAIT_SECONDS


def test_processes_that_build_different_models_say_what_differs(checkpoints, tmp_path):
    for rank, vocab_size in enumerate((97, 98)):
        config = json.loads((checkpoints / "llama" / "config.json").read_text())
        random_model({**config, "vocab_size": vocab_size}, seed=0).save_pretrained(tmp_path / f"seen-by-{rank}")
    codes, said = ended(pair([LOADING, ".", json.dumps([{"name": "fails", "student": "seen-by-{rank}"}])], tmp_path))
    assert codes == [1, 1]
    assert "Process 1 builds another LlamaForCausalLM than process 0 has read" in said[0]
    assert "[98, 64]" in said[0] and "[97, 64]" in said[0] and "training.sharding=none" in said[0]
    assert "builds another" not in said[1]


def test_a_checkpoint_that_cannot_be_read_is_said_once(tmp_path, tiny_run_arguments, tiny_teacher):
    """Its weights have other shapes than config.json says."""
    student = tmp_path / "student"
    shutil.copytree(tiny_teacher, student)
    config = student / "config.json"
    config.write_text(re.sub(r'"intermediate_size": \d+', '"intermediate_size": 96', config.read_text()))
    kept = [argument for argument in tiny_run_arguments if not argument.startswith("student.")]
    more = ["student=pretrained", f"student.model={student}", "training.sharding=full", "until=train"]
    codes, said = ended(pair(["-m", "distill", *kept, *more], tmp_path))
    assert codes == [2, 2]
    assert said[0].count("Needed: ") == 1 and "down_proj" in said[0] and said[1] == ""


def shorten(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
