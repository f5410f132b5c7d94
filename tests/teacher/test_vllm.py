"""`teacher=vllm`: the option, and the child process, with a stand-in for vLLM, which cannot be installed here."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from distill.encoding import encode_prompt, load_tokenizer
from distill.errors import RecipeError, StageFailed
from distill.example import Example
from distill.served.child import require_program
from distill.stages._vllm_teacher import command_of, open_vllm
from distill.stages.teach import Question, Wanted
from distill.teacher.vllm import Vllm
from tests.conftest import ROOT, cli_environment
from tests.served.serving import QUICKSTART
from tests.stages.served_truth import check_row, logprobs

TOP_K = Wanted("top_k", False, 1.0, 0)


def parsed(**settings) -> Vllm:
    return TypeAdapter(Vllm).validate_json(json.dumps({"kind": "vllm", "model": str(QUICKSTART), **settings}))


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr("distill.served._asker.FIRST_WAIT_SECONDS", 0.02)


@pytest.fixture
def python(tmp_path, monkeypatch) -> str:
    """An executable that is called as `python -m vllm…` is, and reports how it was started."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    script = tmp_path / "stand_in.py"
    paths = [str(ROOT), str(ROOT / "triton_kernels")]
    script.write_text(f"import sys\nsys.path[:0] = {paths}\nfrom tests.teacher.vllm_stand_in import main\nmain()\n")
    executable = tmp_path / "python-with-vllm"
    executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    executable.chmod(0o755)
    monkeypatch.setenv("STAND_IN_REPORT", str(tmp_path / "report.json"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return str(executable)


def report(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "report.json").read_text())


def living(group: int) -> list[int]:
    """Processes of a group that are not mere zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def gone(group: int, seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while living(group) and time.monotonic() < end:
        time.sleep(0.1)
    return not living(group)


def test_the_shipped_yaml_names_it():
    assert yaml.safe_load((ROOT / "conf/teacher/vllm.yaml").read_text()) == {"kind": "vllm"}


def test_the_command_line():
    teacher = parsed(
        python="/opt/vllm/bin/python",
        tensor_parallel_size=4,
        pipeline_parallel_size=2,
        max_model_len=4096,
        dtype="bfloat16",
        quantization="fp8",
        gpu_memory_utilization=0.8,
        top_k=64,
        extra_arguments=["--enforce-eager"],
    )
    command = command_of(teacher, "teacher", 8123)
    assert command[:3] == ["/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert command[-1] == "--enforce-eager"
    pairs = dict(zip(command[3:-1:2], command[4:-1:2], strict=True))
    assert pairs == {
        "--model": str(QUICKSTART),
        "--served-model-name": "teacher",
        "--host": "127.0.0.1",
        "--port": "8123",
        "--dtype": "bfloat16",
        "--tensor-parallel-size": "4",
        "--pipeline-parallel-size": "2",
        "--max-logprobs": "64",
        "--max-model-len": "4096",
        "--quantization": "fp8",
        "--gpu-memory-utilization": "0.8",
    }


@pytest.mark.parametrize(
    "word",
    ["--port=1", "--api-k=x", "--trust-remote", "--tool_parser_plugin=x.py", "--hf-token", "--config=x.yaml", "-tp"],
)
def test_arguments_that_it_does_not_take(word):
    with pytest.raises(ValidationError, match="not among those that a recipe may set"):
        parsed(extra_arguments=[word])
    assert parsed(extra_arguments=["--swap-space", "-1", "--enable_prefix_caching"]).extra_arguments


def test_what_decides_the_stored_answers():
    one = parsed(tensor_parallel_size=8, python="a", concurrency=2).decides("top_k")
    assert one == parsed().decides("top_k") and "model" not in one  # the weights of a folder say it
    assert parsed(dtype="bfloat16").decides(None) != parsed().decides(None)
    assert TypeAdapter(Vllm).validate_json('{"kind": "vllm", "model": "org/teacher"}').decides(None)["model"]
    assert parsed().tokenizer_from == (str(QUICKSTART), None)


def test_a_python_that_is_not_there():
    with pytest.raises(RecipeError, match=r"teacher\.python=/no/python: no such program"):
        require_program("/no/python", "teacher.python")


def test_it_is_started_asked_and_stopped(python, tmp_path):
    notes: list[str] = []
    example = Example("Ann has 3 apples and buys 4. How many apples has she?")
    prompt = encode_prompt(load_tokenizer(QUICKSTART), example.prompt)
    teacher = parsed(python=python, max_new_tokens=24, extra_arguments=["--enforce-eager"])
    with open_vllm(teacher, TOP_K, [example], tmp_path, notes.append) as engine:
        facts = report(tmp_path)
        assert engine.name == "quickstart_teacher" and engine.served.capabilities.scoring == "prompt_logprobs"
        (row,) = engine.with_targets(engine.answer([Question(0, example, prompt)]))
        assert living(facts["group"])
    check_row(row, logprobs(QUICKSTART, row.input_ids_T), 20, nats=0.05)
    assert gone(facts["group"])
    environment = facts["environment"]
    key = environment["VLLM_API_KEY"]
    assert environment["PYTHONSAFEPATH"] == "1" and "PYTHONPATH" not in environment
    assert facts["group"] == facts["pid"] != os.getpgid(0)
    assert facts["cwd"] not in (os.getcwd(), str(ROOT)) and not Path(facts["cwd"]).exists()
    assert not any(key in text for text in [*facts["argv"], *notes])
    for file in (file for file in tmp_path.rglob("*") if file.name != "report.json" and file.is_file()):
        assert key.encode() not in file.read_bytes(), file
    # another run, another port and another key, but the same journal
    with open_vllm(teacher, TOP_K, [example], tmp_path, notes.append) as engine:
        before = engine.served.spent
        (again,) = engine.answer([Question(0, example, prompt)])
        assert engine.served.spent == before and again.text == row.text
    assert report(tmp_path)["environment"]["VLLM_API_KEY"] != key and gone(report(tmp_path)["group"])


def test_death_at_the_start(python, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "die")
    with pytest.raises(StageFailed, match=r"(?s)exit code 1 before it was ready.*no GPU is large enough") as error:
        open_vllm(parsed(python=python), TOP_K, (), tmp_path, print).__enter__()
    assert "and the key ***" in str(error.value)
    assert report(tmp_path)["environment"]["VLLM_API_KEY"] not in str(error.value)


def test_it_is_never_healthy(python, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "sick")
    with pytest.raises(StageFailed, match=r"(?s)was not ready within 2 s \(teacher\.start_seconds\).*starting with"):
        open_vllm(parsed(python=python, start_seconds=2), TOP_K, (), tmp_path, print).__enter__()
    assert gone(report(tmp_path)["group"])


def test_death_in_the_middle(python, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "die after 14")
    tokenizer = load_tokenizer(QUICKSTART)
    rows = [Example(f"Ann has {n} apples and buys 4. How many apples has she?") for n in range(12)]
    asked = [Question(n, row, encode_prompt(tokenizer, row.prompt)) for n, row in enumerate(rows)]
    teacher = parsed(python=python, max_new_tokens=8, concurrency=2, max_attempts=4)
    with (
        pytest.raises(StageFailed, match=r"(?s)exit code 3 while it was asked.*run it again.*the GPU has gone"),
        open_vllm(teacher, TOP_K, rows, tmp_path, print) as engine,
    ):
        engine.answer(asked)
    assert gone(report(tmp_path)["group"])
    monkeypatch.delenv("STAND_IN")
    notes: list[str] = []
    with open_vllm(teacher, TOP_K, rows, tmp_path, notes.append) as engine:
        assert len(engine.answer(asked)) == 12
    (estimate,) = [line for line in notes if "of 12 requests to ask" in line]
    assert 0 < int(estimate.split(": ")[1].split()[0]) < 12


SCRIPT = """
import json, sys, time
from pathlib import Path
from pydantic import TypeAdapter
from distill.stages._vllm_teacher import open_vllm
from distill.stages.teach import Wanted
from distill.teacher.vllm import Vllm

teacher = TypeAdapter(Vllm).validate_json(sys.argv[1])
with open_vllm(teacher, Wanted(None, False, 1.0, 0), (), Path(sys.argv[2]), lambda line: None):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_however_we_end_nothing_is_left(python, tmp_path, how):
    settings = json.dumps({"kind": "vllm", "model": str(QUICKSTART), "python": python})
    ours = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, settings, str(tmp_path)],
        env={**cli_environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'triton_kernels'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with ours:
        assert ours.stdout is not None and ours.stdout.readline() == "ready\n"
        group = report(tmp_path)["group"]
        assert len(living(group)) >= 2  # the server and its own child
        ours.send_signal(how)
        ours.wait()
    assert gone(group)
