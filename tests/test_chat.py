"""python -m distill.chat: as evaluated, in a pipe, in a terminal, from a copy, and what it says of what is wrong."""

import contextlib
import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill import chat
from distill._chat_models import _newest, found_in
from distill._hydra import compose
from distill._own_recipe import write_recipe
from distill.compression.gguf_q8_0 import GgufQ8_0
from tests.conftest import ROOT, cli_environment
from tests.cycling_model import TEXT, make_cycling_model

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

TEACHER = ROOT / "distill" / "bundled" / "quickstart_teacher"
ENVIRONMENT = cli_environment(OMP_NUM_THREADS="1")


def ask(folder: Path, *arguments: object, questions: str | bytes) -> subprocess.CompletedProcess:
    """The command with questions on its standard input."""
    command = [sys.executable, "-m", "distill.chat", *map(str, arguments)]
    typed = questions if isinstance(questions, bytes) else questions.encode()
    ran = subprocess.run(command, cwd=folder, env=ENVIRONMENT, input=typed, capture_output=True, timeout=120)
    return subprocess.CompletedProcess(command, ran.returncode, ran.stdout.decode(), ran.stderr.decode())


# a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(working folder, standard error) of a run whose student can answer: it is the teacher, trained on by a hair."""
    work = tmp_path_factory.mktemp("work folder")
    typed = [
        "recipe=quickstart",
        "student=pretrained",
        f"student.model={TEACHER}",
        "data.num_rows=16",
        "data.labelled_rows=8",
        "data.evaluation_rows=8",
        "data.new_template_rows=2",
        "training.max_steps=1",
        "training.batch_size=4",
        "training.learning_rate=1e-7",
        "evaluation.speed=false",
        "evaluation.positions=50",
        "baselines=[]",
        "compression=[gguf_q8_0]",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "distill", *typed],
        cwd=work,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ran.returncode == 0, ran.stderr
    return work, ran.stderr


def samples_of(run: Path) -> list[dict]:
    return json.loads((run / "samples.json").read_text())


@pytest.mark.slow
def test_every_model_answers_as_it_was_evaluated(finished):
    (run,) = finished[0].glob("outputs/quickstart/*")
    samples = samples_of(run)
    assert len(samples) == 8 and len({sample["answers"]["student"] for sample in samples}) > 4
    names = ["gguf_q8_0", "student", "teacher"]
    assert set(samples[0]["answers"]) == set(names)
    typed = [part for name in names for part in ("--package", name)]
    questions = "".join(json.dumps({"prompt": sample["prompt"]}) + "\n" for sample in samples)
    done = ask(finished[0], run, "--json", *typed, questions=questions)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line)["answers"] for line in done.stdout.splitlines()]
    assert answers == [{name: sample["answers"][name] for name in names} for sample in samples]


@pytest.mark.slow
def test_the_line_that_ends_a_run_talks_to_what_the_report_recommends(finished):
    work, said = finished
    (run,) = work.glob("outputs/quickstart/*")
    last = said.strip().splitlines()[-1]
    command = re.fullmatch(r"Talk to it: python -m (distill\.chat .*)", last)
    assert command, last
    assert shlex.split(command[1]) == ["distill.chat", f"outputs/quickstart/{run.name}"]
    first, second = samples_of(run)[:2]
    # none typed: the newest run, which is then named
    done = ask(work, questions=f"{first['prompt']}\n\n  {second['prompt']}  \n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{first['answers']['gguf_q8_0']}\n\n{second['answers']['gguf_q8_0']}\n"
    assert done.stderr == f"gguf_q8_0 of outputs/quickstart/{run.name}\n"


@pytest.mark.slow
def test_a_copy_of_a_package_needs_nothing_around_it(finished, tmp_path):
    (run,) = finished[0].glob("outputs/quickstart/*")
    sample = samples_of(run)[0]
    copied = shutil.copytree(run / "packages" / "gguf_q8_0", tmp_path / "it's [a] device")
    (file,) = copied.glob("*.gguf")
    for place in (copied, file):
        done = ask(tmp_path, place, questions=sample["prompt"])
        assert (done.returncode, done.stdout) == (0, sample["answers"]["gguf_q8_0"] + "\n"), done.stderr


@pytest.mark.slow
def test_a_package_that_failed_is_never_the_default_and_named_with_a_warning(finished, tmp_path, monkeypatch):
    (run,) = finished[0].glob("outputs/quickstart/*")
    copied = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setenv("DISTILL_STORE", str(finished[0] / "outputs" / "store"))
    found = found_in(copied)
    assert found.default == "gguf_q8_0" and list(found.models) == ["gguf_q8_0", "student", "teacher"]
    (copied / "scores.json").unlink()  # a run that stopped before: what is verified counts
    assert found_in(copied).default == "gguf_q8_0"
    (proof,) = json.loads((copied / "verification.json").read_text())
    proof |= {"verified": False, "detail": "it says \x1b[31msomething else"}
    (copied / "verification.json").write_text(json.dumps([proof]))
    assert found_in(copied).default == "student"
    done = ask(tmp_path, copied, "--package", "gguf_q8_0", "--max-new-tokens", "3", questions="How many?")
    assert done.returncode == 0 and done.stdout
    assert done.stderr.startswith("gguf_q8_0 did not pass verification: it says \\x1b[31msomething else\n")
    assert "gguf_q8_0: 3 tokens" in done.stderr and "cut: --max-new-tokens" in done.stderr


# a terminal


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, *arguments: object):
        command = [sys.executable, "-m", "distill.chat", *map(str, arguments)]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, {**ENVIRONMENT, "TERM": "dumb", "PYTHONPATH": _python_path()})
        self.seen = ""

    def until(self, text: str, seconds: float = 60) -> str:
        """What was written up to `text`, which must come in time."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} within {seconds} s after {self.seen[-500:]!r}"
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def end(self, keys: str, seconds: float = 60) -> int:
        """The exit code after these keys; typed again where they came before the prompt waited for any."""
        deadline, pid, status = time.monotonic() + seconds, 0, 0
        while pid == 0:
            assert time.monotonic() < deadline, f"still there {seconds} s after {keys!r}"
            self.type(keys)
            time.sleep(1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def _python_path() -> str:
    return os.pathsep.join(path for path in sys.path if path)


@pytest.fixture(scope="module")
def cycling(tmp_path_factory) -> Path:
    """A folder with `checkpoint` and `gguf` of one model that has not said all before somebody stops it."""
    folder = make_cycling_model(tmp_path_factory.mktemp("models") / "checkpoint", num_layers=8)
    GgufQ8_0(kind="gguf_q8_0").make(folder, folder.parent / "gguf")
    return folder.parent


CTRL_C, CTRL_D, PROMPT = "\x03", "\x04", "> "
SHOWN = TEXT.replace("\x1b", r"\x1b")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "last", "code"), [("checkpoint", CTRL_D, 0), ("gguf", CTRL_C, 130)])
def test_in_a_terminal_answers_come_as_they_are_made_and_ctrl_c_stops_one(cycling, model, last, code):
    terminal = Terminal(cycling / model, "--max-new-tokens", 4_000)
    introduced = terminal.until(PROMPT)
    assert f"{model} of " in introduced and "Ctrl-C stops an answer" in introduced
    for _ in range(2):  # the second shows that the model survived
        terminal.type("hello\r")
        streamed = terminal.until(SHOWN.replace("\n", "\r\n"))
        assert "\x1b[31m" not in streamed
        terminal.type(CTRL_C)
        assert "tokens/s, stopped" in terminal.until(PROMPT)
        time.sleep(1)  # a process that Ctrl-C ends takes a moment
    terminal.type("/rest\r")
    assert "/rest: there are /reset and /quit." in terminal.until(PROMPT)
    assert terminal.end(last) == code


# a pipe


def test_only_answers_are_printed_and_nothing_steers_the_terminal(cycling, tmp_path):
    length = len(TEXT.encode())
    done = ask(tmp_path, cycling / "gguf", "--max-new-tokens", length, questions="\ufeffone\ntwo\n")
    assert (done.returncode, done.stdout) == (0, f"{SHOWN}\n\n{SHOWN}\n")
    assert done.stderr.count("cut: --max-new-tokens") == 2 and "standard input, line 2: gguf" in done.stderr


def test_a_line_that_cannot_be_asked_stops_it_with_its_number(cycling, tmp_path):
    done = ask(tmp_path, cycling / "gguf", "--max-new-tokens", 1, questions=b"fine\n\xff\n")
    assert (done.returncode, done.stdout) == (2, "a\n")
    assert "standard input, line 2 is not UTF-8" in done.stderr and "Traceback" not in done.stderr


# what is wrong


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """(typed) → what is said; in an empty folder, and without a runtime being opened."""
    monkeypatch.chdir(tmp_path)

    def run(*typed: object) -> str:
        with pytest.raises(SystemExit) as ended:
            chat.main([str(part) for part in typed])
        said = capsys.readouterr()
        assert ended.value.code == 2 and said.out == "" and len(said.err.splitlines()) <= 6
        return " ".join(said.err.split())

    return run


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ([], "No finished run below outputs/. Make one: python -m distill"),
        (["nowhere"], "nowhere: no such folder. Needed: a run's folder, or a package."),
        (["."], ". holds no run (recipe.yaml) and no model"),
        ([TEACHER, "--package", "bf17"], "--package bf17: there is no bf17 in"),
        ([TEACHER, "--pack", "x"], "unrecognized arguments: --pack x. See python -m distill.chat --help"),
        (["--temperature", "-1"], "--temperature -1: it must be 0, or lie between 0.001 and 10"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--temperature", "1e-320"], "--temperature 9.99989e-321: it must be 0, or lie between 0.001 and 10"),
        (["--temperature", "inf"], "--temperature inf"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: it must be 1 or more"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "4294967295"], "--seed 4294967295: it must lie between 0 and 4294967294"),  # -1, that is: any seed
    ],
)
def test_a_wrong_argument_is_named(typed, words, refused):
    assert words in refused(*typed)


def test_a_run_that_made_nothing_yet_names_the_command_that_goes_on(refused, tmp_path):
    (tmp_path / "run").mkdir()
    write_recipe(compose(["recipe=quickstart"]), tmp_path / "run" / "recipe.yaml")
    start = {"event": "start", "command": "python -m distill recipe=quickstart seed=3"}
    (tmp_path / "run" / "record.jsonl").write_text(json.dumps(start) + "\n")
    said = refused("run")
    assert (
        "run has made nothing to talk to yet. The same command goes on: python -m distill recipe=quickstart seed=3"
        in said
    )


def test_a_folder_of_a_run_names_the_run(refused, tmp_path):
    (tmp_path / "run" / "packages").mkdir(parents=True)
    write_recipe(compose(["recipe=quickstart"]), tmp_path / "run" / "recipe.yaml")
    said = refused("run/packages")
    assert "run/packages holds no run" in said and "python -m distill.chat " in said
    assert "".join(said.split()).endswith("".join(str(tmp_path / "run").split()))


def test_a_rehearsal_is_taken_where_there_is_no_other_run(tmp_path):
    for age, name in enumerate(["rehearsed", "old", "new"]):
        (tmp_path / name).mkdir()
        for file in ("recipe.yaml", "scores.json", *(["rehearsal.md"] if name == "rehearsed" else [])):
            (tmp_path / name / file).touch()
            os.utime(tmp_path / name / file, (1000 - age, 1000 - age))
    newest = []
    for gone in ("old", "new", None):
        newest.append(_newest(tmp_path))
        if gone:
            shutil.rmtree(tmp_path / gone)
    assert newest == [tmp_path / "old", tmp_path / "new", tmp_path / "rehearsed"]


def test_a_package_that_nothing_verified_is_said_to_be_so(tmp_path):
    write_recipe(compose(["recipe=quickstart"]), tmp_path / "recipe.yaml")
    for name in ("bf16", "int8"):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "config.json").touch()
    (tmp_path / "verification.json").write_text(json.dumps([{"package": "int8", "verified": True}]))
    models = found_in(tmp_path).models
    assert models["bf16"].warning.startswith("bf16 was not verified") and models["int8"].warning == ""


def test_an_error_steers_no_terminal_either(refused, tmp_path):
    (tmp_path / "run").mkdir()
    write_recipe(compose(["recipe=quickstart"]), tmp_path / "run" / "recipe.yaml")
    start = {"event": "start", "command": "python -m distill \x1b]0;title\x07"}
    (tmp_path / "run" / "record.jsonl").write_text(json.dumps(start) + "\n")
    assert r"python -m distill \x1b]0;title\x07" in refused("run")


def test_a_runtime_that_is_not_installed_is_named(refused, cycling, monkeypatch):
    monkeypatch.setattr("distill._chat_models.find_spec", lambda name: None)
    assert "gguf needs llama.cpp, which is not installed: pip install 'distill[gguf]'" in refused(cycling / "gguf")


def test_the_line_while_a_model_loads_steers_no_terminal(refused, monkeypatch, tmp_path):
    shown: list[str] = []

    class Console:
        def status(self, text: str):
            shown.append(text)
            return contextlib.nullcontext()

    monkeypatch.setattr(chat, "console", Console)
    (tmp_path / "ev\x1b]0;pwn\x07il").mkdir()
    (tmp_path / "ev\x1b]0;pwn\x07il" / "config.json").write_text("{}")
    refused("ev\x1b]0;pwn\x07il")
    assert shown == [r"loads ev\x1b]0;pwn\x07il"]


def test_weights_that_are_cut_off_are_named(refused, tmp_path):
    shutil.copytree(TEACHER, tmp_path / "cut")
    (file,) = (tmp_path / "cut").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    assert "cut does not load from cut: " in refused("cut")


def test_scores_without_a_path_are_a_run_without_that_model(refused, tmp_path):
    (tmp_path / "run").mkdir()
    write_recipe(compose(["recipe=quickstart"]), tmp_path / "run" / "recipe.yaml")
    scores = {"models": [{"name": "student"}, {"name": "teacher"}]}
    (tmp_path / "run" / "scores.json").write_text(json.dumps(scores))
    assert "run has made nothing to talk to yet" in refused("run")


def test_weights_that_are_missing_are_named(refused, cycling, tmp_path):
    shutil.copytree(cycling / "checkpoint", tmp_path / "half", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "half does not load from half: " in refused("half")
    (tmp_path / "gguf").mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(cycling / "gguf" / "model-q8_0.gguf", tmp_path / "gguf" / name)
    assert "gguf holds 2 .gguf files; name one of them" in refused("gguf")
