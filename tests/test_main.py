"""python -m distill as a user meets it: exit codes, messages, run folders. Real processes, a pipeline of its own."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill.training import Training

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
# The real command line with another pipeline, which does what the environment says.
STAND_IN = """
import os, sys, types
def run(recipe, folder, notes=()):
    print("ran", recipe.loss.kind, recipe.seed, folder.name, sys.argv[1:])
    for note in notes: print("note:", note)
    what = os.environ.get("DOES", "")
    if what == "report": (folder / "report.html").write_text("")
    if what == "sleep":
        import time; time.sleep(60)
    if what == "fault": raise ZeroDivisionError("[bf16] by zero\\nsecond line")
    if what == "stage" and recipe.seed == 0:
        from distill.errors import StageFailed
        raise StageFailed("train: the disk is full; compression=[bf16] waits")
def check(recipe):
    if recipe.seed == 99:
        from distill.errors import DataError
        raise DataError("rows.jsonl has no answers")
for name, does in (("pipeline", run), ("checks", check)):
    sys.modules["distill." + name] = types.ModuleType(name)
    setattr(sys.modules["distill." + name], does.__name__, does)
from distill.__main__ import main
main()
"""
RECIPE = """\
# @package _global_
# for this test
defaults:
  - override /data: local
  - override /teacher: none
  - override /loss: text
data: {path: rows.jsonl}
loss: {}
"""


@pytest.fixture
def work(tmp_path):
    """An empty current directory with a recipe that parses."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def start(folder: Path, *arguments: str, stand_in: bool = True, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *(["-c", STAND_IN] if stand_in else ["-m", "distill"]), *arguments]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=60
    )


def runs(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob("outputs/*/*/recipe.yaml"))


def test_a_run_has_its_folder_and_nothing_of_hydras(work):
    done = start(work, "recipe=mine.yaml", "seed=3", DOES="report")
    assert done.returncode == 0, done.stderr
    [run] = runs(work)
    assert run.parent == work / "outputs" / "mine"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.name)
    assert sorted(file.name for file in run.iterdir()) == ["recipe.yaml", "report.html"]
    assert f"ran text 3 {run.name} ['recipe=mine.yaml', 'seed=3']" in done.stdout
    assert f"Report: outputs/mine/{run.name}/report.html" in done.stderr
    assert sorted(path.name for path in work.iterdir()) == ["mine.yaml", "outputs", "rows.jsonl"]

    again = start(work, f"recipe=outputs/mine/{run.name}/recipe.yaml")
    assert again.returncode == 0, again.stderr
    assert len(runs(work)) == 2
    assert runs(work)[1].joinpath("recipe.yaml").read_text() == (run / "recipe.yaml").read_text()


def test_dropped_keys_reach_the_pipeline(work):
    tuned = (
        RECIPE.replace("/teacher: none", "/teacher: hf").replace("text", "jsd").replace("loss: {}", "loss: {beta: 0.2}")
    )
    (work / "tuned.yaml").write_text(tuned + "teacher: {model: .}\n")
    done = start(work, "recipe=tuned.yaml", "loss=text", "teacher=none")
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if line.startswith("note:")]
    assert [re.search(r"\w+\.\w+", note)[0] for note in notes] == ["teacher.model", "loss.beta"]


def test_a_sweep_lands_in_the_same_place_and_goes_on_after_a_failure(work):
    done = start(work, "-m", "recipe=mine.yaml", "seed=0,1", "training.max_steps=2", DOES="stage")
    assert done.returncode == 1
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [["ran", "text", "0"], ["ran", "text", "1"]]
    assert "train: the disk is full; compression=[bf16] waits" in done.stderr
    assert "Traceback" not in done.stderr
    first, second = runs(work)
    assert {first.parent, second.parent} == {work / "outputs" / "mine"}
    assert "the disk is full" in (first / "logbook.md").read_text()
    assert not (second / "logbook.md").exists()


def test_an_error_steers_no_terminal(work):
    (work / "evil.yaml").write_text(RECIPE + 'hardware: "\\e[2J\\a"\n')
    done = start(work, "recipe=evil.yaml")
    assert done.returncode == 2
    assert r"hardware=\x1b[2J\x07" in done.stderr and "\x1b" not in done.stderr


def test_flags_may_stand_between_arguments(work):
    done = start(work, "recipe=mine.yaml", "-m", "seed=5,6")
    assert done.returncode == 0, done.stderr
    assert len(runs(work)) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipe=mine.yaml", "lsos=1"], "did you mean loss?"),
        (["recipe=mine.yaml", "loss=jds"], "did you mean jsd?"),
        (["recipe=mine.yaml", "seed=x"], "seed"),
        (["-m", "recipe=mine.yaml", "seed=1,2,x"], "seed"),
        (["-m", "recipe=mine.yaml", "loss=text,jds"], "did you mean jsd?"),
        (["recipe=nobody"], "no such recipe"),
        (["recipe=mine.yaml", "--nobody"], "--nobody"),
        (["--config-name", "x"], "recipe=NAME"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(work, arguments, said):
    before = sorted(work.rglob("*"))
    done = start(work, *arguments, stand_in=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 6
    assert done.stdout == ""
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["seed=99"], ["-m", "seed=1,99"]])
def test_what_the_data_speak_against_is_said_before_anything_is_written(work, arguments):
    done = start(work, "recipe=mine.yaml", *arguments)
    assert done.returncode == 2
    assert done.stderr == "rows.jsonl has no answers\n"
    assert done.stdout == ""
    assert not (work / "outputs").exists()


def test_a_run_folder_that_cannot_be_made(work):
    done = start(work, "recipe=mine.yaml", "hydra.run.dir=mine.yaml/x")
    assert done.returncode == 2
    assert "mine.yaml/x" in done.stderr
    assert "hydra.run.dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unforeseen_error_leaves_its_traceback_in_the_logbook(work):
    done = start(work, "recipe=mine.yaml", DOES="fault")
    assert done.returncode == 1
    [run] = runs(work)
    said = done.stderr.splitlines()
    assert said[0] == "ZeroDivisionError: [bf16] by zero"
    assert f"outputs/mine/{run.name}/logbook.md" in said[1]
    assert "python -m distill recipe=mine.yaml" in said[1]
    assert len(said) == 2
    logbook = (run / "logbook.md").read_text()
    assert "Traceback" in logbook
    assert "second line" in logbook
    assert "Traceback" in start(work, "recipe=mine.yaml", DOES="fault", DISTILL_DEBUG="1").stderr


def interrupt(work: Path, *signals: int) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", STAND_IN, "recipe=mine.yaml", "name=a"],
        cwd=work,
        env=ENVIRONMENT | {"DOES": "sleep"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("ran")
    for number in signals:
        process.send_signal(number)
    _, said = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.parametrize(
    ("signals", "code", "word"),
    [
        ([signal.SIGINT], 130, "Interrupted."),
        ([signal.SIGTERM], 143, "Ended by SIGTERM."),
        # to the group and to the child: `timeout`, and srun with torchrun, send it twice
        ([signal.SIGTERM, signal.SIGTERM], 143, "Ended by SIGTERM."),
    ],
)
def test_ctrl_c_and_sigterm_say_that_the_same_command_goes_on(work, signals, code, word):
    assert interrupt(work, *signals) == (
        code,
        f"{word} The same command goes on: python -m distill recipe=mine.yaml name=a\n",
    )
    [last] = (runs(work)[0] / "logbook.md").read_text().splitlines()
    assert last.endswith(f"{word} The same command goes on.")


def test_sigterm_ends_a_forked_child_without_a_word(work):
    forks = """
import os, signal, sys, time
from distill._sigterm import raise_at_sigterm
raise_at_sigterm()
child = os.fork()
if not child:
    time.sleep(60)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", forks], env=ENVIRONMENT, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("-15\n", "")


def test_a_key_given_twice_is_said(work):
    done = start(work, "recipe=mine.yaml", "seed=1", "seed=2")
    assert done.returncode == 0, done.stderr
    assert "ran text 2" in done.stdout
    assert "note: seed=1 is dropped: seed=2 comes after it." in done.stdout


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--rehearse", "rehearse"),
        ("--until=train", "until"),
        ("--recipe=quickstart", "recipe"),
        ("--training.max_steps=20", "training.max_steps"),
    ],
)
def test_a_key_with_dashes_is_told_how_it_is_written(work, flag, key):
    done = start(work, flag, stand_in=False)
    assert done.returncode == 2
    assert f"unrecognized arguments: {flag}. Keys have no dashes: {key}=…. See" in done.stderr


def test_help_is_one_screen_with_every_recipe_and_option(work):
    from distill import shipped

    done = start(work, "--help", stand_in=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 120
    for group, options in shipped.groups().items():
        assert any(line.split() == [group, *", ".join(options).split()] for line in lines), group
    for name, comment in shipped.recipes().items():
        assert any(line.split()[:1] == [name] and comment.split()[0] in line for line in lines if line.strip()), name
    assert "__main__" not in done.stdout
    mains = [file for file in (ROOT / "distill").rglob("[a-z]*.py") if '__name__ == "__main__"' in file.read_text()]
    commands = {file.stem for file in mains}
    assert {"plan", "chat"} <= commands
    assert all(f".{command}" in done.stdout for command in commands | {"megatron"})
    # it says that a wrong key is answered with all of its group, which --cfg job does not show
    assert "training.x=1 is answered with all." in done.stdout
    wrong = start(work, "training.x=1", stand_in=False)
    assert {field.name for field in dataclasses.fields(Training)} <= set(re.findall(r"\w+", wrong.stderr))


def test_cfg_prints_yaml_that_composes(work):
    import yaml

    done = start(work, "recipe=mine.yaml", "seed=2", "--cfg", "job", stand_in=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["data"] == {"kind": "local", "path": "rows.jsonl"}
    assert config["seed"] == 2
    assert "hydra" not in config
    only = start(work, "recipe=mine.yaml", "--cfg", "job", "--package", "data", stand_in=False)
    assert yaml.safe_load(only.stdout) == {"kind": "local", "path": "rows.jsonl"}
    assert not (work / "outputs").exists()


def test_a_reader_that_stops_early_is_no_error(work):
    program = f"{sys.executable} -u -m distill --help | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], cwd=work, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "d", "")


def test_info_and_the_search_path_of_the_user(work):
    (work / "mine").mkdir()
    (work / "mine" / "one.yaml").write_text(RECIPE)
    shown = start(work, "--info", "searchpath", "hydra.searchpath=[file://mine]", stand_in=False)
    assert shown.returncode == 0, shown.stderr
    assert "file://mine" in shown.stdout
    assert "recipes://" in shown.stdout
    done = start(work, "recipe=one", "hydra.searchpath=[file://mine]", "hydra.run.dir=elsewhere/x")
    assert done.returncode == 0, done.stderr
    assert (work / "elsewhere" / "x" / "recipe.yaml").is_file()


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_looking_is_quick_and_loads_nothing_heavy(work, arguments):
    heavy = [
        "torch",
        "transformers",
        "numpy",
        "datasets",
        "matplotlib",
        "wandb",
        "bitsandbytes",
        "xllamacpp",
        "gguf",
        "peft",
    ]
    code = f"""
import sys, json, atexit
atexit.register(lambda: print(json.dumps([name for name in {heavy} if name in sys.modules]), file=sys.stderr))
from distill.__main__ import main
main({arguments})
"""
    command = [sys.executable, "-c", code]
    before = os.times().children_user + os.times().children_system
    done = subprocess.run(command, cwd=work, env=ENVIRONMENT, capture_output=True, text=True)
    # processor time: the wall clock of a busy machine says nothing about us
    seconds = os.times().children_user + os.times().children_system - before
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []
    assert seconds <= 2.5
