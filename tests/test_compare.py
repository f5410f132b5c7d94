"""python -m distill.compare, typed as a newcomer types it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill import compare
from tests.comparing.made_runs import edit, make_run, sweep
from tests.conftest import cli_environment, typed_in

RESULTS = {"jsd": {0: 0.80, 1: 0.84}, "forward_kl": {0: 0.79, 1: 0.81}}


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    return typed_in(compare.main, tmp_path, capsys, monkeypatch, columns=80)


def test_a_sweep_is_a_table_of_80_columns_a_verdict_and_a_page(command, tmp_path):
    sweep(tmp_path / "outputs" / "quickstart", RESULTS)
    code, said, error = command()
    assert (code, error) == (0, "")
    lines = said.splitlines()
    assert lines[0] == "quickstart: exact match, 4 runs of 2 recipes"
    assert lines[1:3] == ["A  loss.kind=jsd  (seeds 0, 1)", "B  loss.kind=forward_kl  (seeds 0, 1)"]
    rows = [line.split() for line in lines if re.match("[AB] student", line)]
    assert rows == [
        ["A", "student", "82.0", "80.0–84.0", "2", "0.0311", "2.27", "MiB", "1,184", "best"],
        ["B", "student", "80.0", "79.0–81.0", "2", "0.0311", "2.27", "MiB", "1,184", "overlap"],
    ]
    assert "The ranges overlap: these seeds show no difference." in said
    assert lines[-1] == "Page: compare.html"
    page = (tmp_path / "compare.html").read_text()
    assert "2.0 points more than" in page
    # and again: our own page is written over
    assert command("outputs/quickstart/jsd_0", "outputs")[0] == 0
    assert (tmp_path / "compare.html").read_text() == page


def test_every_line_of_the_table_fits_into_80_columns(command, tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "outputs" / str(seed), seed=seed)
        make_run(tmp_path / "outputs" / f"jsd{seed}", seed=seed, options={"loss": "jsd"})
    table = [line.rstrip() for line in command()[1].split("\n\n")[1].splitlines()]
    assert len(table) > 5 and max(map(len, table)) <= 80
    assert any(line.split()[:2] == ["A", "bnb_nf4_lora"] for line in command()[1].splitlines())


def test_groups_stand_apart_and_say_so(command, tmp_path):
    make_run(tmp_path / "runs" / "a", rows="a" * 20, scores={"student": 0.1})
    make_run(tmp_path / "runs" / "b", rows="b" * 20, scores={"student": 0.9})
    said = command("runs")[1]
    assert said.startswith("2 groups. Groups were judged on different rows")
    assert "1 run of 1 recipe\nJudged on rows=aaaaaaaaaaaa\n" in said and "Judged on rows=bbbbbbbbbbbb\n" in said
    assert "more than" not in said


def test_what_was_left_out_is_said_and_the_rest_compared(command, tmp_path):
    make_run(tmp_path / "runs" / "good")
    (make_run(tmp_path / "runs" / "bad") / "scores.json").write_text("{")
    code, said, _ = command("runs")
    assert code == 0
    assert "Left out: runs/bad: scores.json is broken: Expecting property name" in said
    for number in range(9):
        make_run(tmp_path / "runs" / f"rehearsed{number}", keys={"rehearse": True})
    said = command("runs")[1]
    assert said.count("Left out:") == 7 and "… and 3 more; the page says why." in said
    assert (tmp_path / "compare.html").read_text().count("a rehearsal") == 9


def test_notes_name_what_makes_columns_hard_to_compare(command, tmp_path):
    make_run(tmp_path / "runs" / "old", scores={"teacher": 0.9, "student": 0.5})
    scores = {"teacher": 0.9, "student": 0.6}
    make_run(tmp_path / "runs" / "new", scores=scores, started="2026-11-23T00:00:00+00:00")
    changed = {"teacher.model": "org/another"}
    other = make_run(tmp_path / "runs" / "other", scores={"teacher": 0.8, "student": 0.5}, keys=changed)
    for name in ("old", "new", "other"):
        edit(tmp_path / "runs" / name / "scores.json", lambda s: s["models"][0].update(path="org/teacher"))
    record = other / "record.jsonl"
    record.write_text(record.read_text().replace('"cores": 2', '"cores": 64').replace("4f1c2ab", "9999999"))
    said = " ".join(command("runs")[1].split())
    counts_no_more = "old counts no more: new is newer, of the same recipe and seed"
    assert f"{counts_no_more}; its student scored 50.0 %, that of new 60.0 %." in said
    assert "KL to the teacher is not the same measure for all of them: teacher.model differ." in said
    assert "The teacher org/teacher scores 80.0 and 90.0" in said
    assert "Speeds are of several machines" in said and "64 cores" in said
    assert "several versions of the code: 0.1.0 4f1c2ab+dirty, 0.1.0 9999999+dirty" in said
    edit(tmp_path / "runs" / "new" / "scores.json", lambda s: s["models"][1]["scores"].update(exact_match=0.5))
    assert f"{counts_no_more}." in " ".join(command("runs")[1].split())


@pytest.mark.filterwarnings("error")  # which would be lines in the terminal
def test_what_a_terminal_would_obey_is_written_out(command, tmp_path):
    evil = "[red]\x1b[2J\u202ex\nA  student 100.0"
    for number in (0, 1):
        run = make_run(tmp_path / "runs" / f"{number}\x1b[2J", keys={"name": evil, "teacher.model": evil * number})
        edit(run / "scores.json", lambda s: s.update(recipe=evil, task=evil))
        edit(run / "scores.json", lambda s: s["models"][3].update(name=evil, scores={evil: 0.5}))
    (make_run(tmp_path / "runs" / "bad\x1b") / "scores.json").write_text("{")
    code, said, error = command("runs")
    assert (code, error) == (0, "")
    assert "\x1b" not in said and "\u202e" not in said and "\nA  student 100" not in said
    assert r"[red]\x1b[2J\u202ex\nA" in said


def test_bytes_that_are_no_utf8_stop_neither_page_nor_json(command, tmp_path):
    run = make_run(tmp_path / "runs" / "b\udcffd", report=True)
    record = (run / "record.jsonl").read_text()
    (run / "record.jsonl").write_text(record.replace("recipe=quickstart", "recipe=q\\udcfe"))
    (make_run(tmp_path / "runs" / "left\udcfd") / "scores.json").unlink()
    code, _, error = command("runs")
    assert (code, error) == (0, "")
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert 'href="runs/b%FFd/report.html"' in page  # the byte itself, as a browser asks for it
    assert r"runs/b\udcffd" in page and r"recipe=q\udcfe" in page and r"left\udcfd" in page
    assert json.loads(command("runs", "--json")[1])["groups"][0]["recipes"][0]["runs"] == ["runs/b\udcffd"]


def test_an_error_that_quotes_a_record_writes_out_what_a_terminal_would_obey(command, tmp_path):
    run = make_run(tmp_path / "runs" / "run")
    (run / "scores.json").unlink()
    with (run / "record.jsonl").open("a") as record:
        record.write(json.dumps({"event": "stage", "name": "\x1b]0;pwn\x07"}) + "\n")
    code, _, error = command("runs")
    assert code == 2 and r"it ended after \x1b]0;pwn\x07" in error
    assert "\x1b" not in error and "\x07" not in error and error.count("\n") > 1


def test_json_says_the_same_in_full_digits_and_writes_no_page(command, tmp_path):
    sweep(tmp_path / "runs", RESULTS)
    code, said, error = command("runs", "--json")
    assert (code, error) == (0, "")
    (group,) = json.loads(said)["groups"]
    assert group["differences"] == ["loss.kind"] and group["judged_on"]["rows"] == "0123456789abcdef0123"
    assert [(r["letter"], r["differs"], r["seeds"]) for r in group["recipes"]] == [
        ("A", {"loss.kind": "jsd"}, [0, 1]),
        ("B", {"loss.kind": "forward_kl"}, [0, 1]),
    ]
    first = group["models"][0]
    assert first["scores"]["exact_match"] == pytest.approx({"mean": 0.82, "low": 0.80, "high": 0.84, "num_seeds": 2})
    assert (first["against_best"], first["runs"]) == ("best", ["runs/jsd_0", "runs/jsd_1"])
    assert not (tmp_path / "compare.html").exists()
    command("runs", "--json", "--html", "page.html")
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "outputs does not exist. Make a run: python -m distill;"),
        (["rnus"], "Did you mean runs?"),
        (["runs/rehearsed"], "None of the runs here is finished and scored; python -m distill recipe=NAME"),
        (["runs", "--html", "runs"], "--html runs is a folder"),
        (["runs", "--html", "mine.txt"], "mine.txt is not a page of distill.compare and stays"),
        (["runs", "--htm", "x"], "unrecognized arguments: --htm"),
    ],
)
def test_a_wrong_argument_is_a_short_message_and_exit_code_2(command, tmp_path, arguments, words):
    make_run(tmp_path / "runs" / "run")
    make_run(tmp_path / "runs" / "rehearsed", keys={"rehearse": True})
    (tmp_path / "mine.txt").write_text("mine")
    code, said, error = command(*arguments)
    assert (code, said) == (2, "")
    assert words in error and error.count("\n") <= 6
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "compare.html").exists()


def test_a_comparison_loads_no_models(tmp_path):
    make_run(tmp_path / "runs" / "run")
    code = (
        "import sys\ntry:\n    from distill import compare; compare.main(['runs'])\nfinally:\n    print(*sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=cli_environment()
    )
    assert ran.returncode == 0, ran.stderr
    assert not {"torch", "transformers", "datasets"} & set(ran.stdout.splitlines()[-1].split())


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path):
    sweep(tmp_path / "runs", RESULTS)
    ask = f"{sys.executable} -m distill.compare runs | head -1; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, env=cli_environment())
    assert (ran.returncode, ran.stderr) == (0, "")


def test_letters_that_the_terminal_lacks_end_nothing(tmp_path):
    sweep(tmp_path / "runs", RESULTS)
    command = [sys.executable, "-m", "distill.compare", "runs"]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, env=cli_environment() | {"PYTHONIOENCODING": "ascii"}
    )
    assert ran.returncode == 0, ran.stderr
    assert b"82.0 % (80.0?84.0" in ran.stdout


def test_a_page_that_cannot_be_written_costs_no_table(tmp_path):
    sweep(tmp_path / "runs", RESULTS)
    command = [sys.executable, "-m", "distill.compare", "runs", "--html", "/proc/page.html"]  # where nobody may write
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=cli_environment())
    assert ran.returncode == 1 and "A  loss.kind=jsd" in ran.stdout
    assert "--html FILE writes the page elsewhere" in ran.stderr and "Page:" not in ran.stdout


def test_a_sweep_is_offered_for_comparison_once_two_runs_have_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [make_run(tmp_path / "outputs" / "my runs" / str(number)) for number in range(3)]
    assert compare.suggestion(made) == "Compare them: python -m distill.compare 'outputs/my runs'"
    assert compare.suggestion([*made, make_run(tmp_path / "outputs" / "b" / "c")]).endswith(" outputs")
    assert compare.suggestion(made[:1]) is None
    (made[1] / "scores.json").unlink()
    (made[2] / "rehearsal.md").write_text("")
    assert compare.suggestion(made) is None
    assert compare.suggestion([Path("/elsewhere")]) is None


@pytest.mark.slow
def test_a_real_sweep_ends_with_the_command_that_compares_it(tiny_run_arguments, run_cli, tmp_path):
    tiny = [*tiny_run_arguments, "compression=[]", "baselines=[]"]
    swept = run_cli("-m", *tiny, "loss=forward_kl,jsd", "seed=0,1", OMP_NUM_THREADS="1", timeout=600)
    assert swept.returncode == 0, swept.stderr
    assert swept.stderr.splitlines()[-1] == "Compare them: python -m distill.compare outputs/quickstart"
    command = [sys.executable, "-m", "distill.compare", "outputs/quickstart", "--json"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=cli_environment())
    assert told.returncode == 0, told.stderr
    (group,) = json.loads(told.stdout)["groups"]
    assert group["differences"] == ["loss.kind"] and group["rows"] == 6
    assert [recipe["seeds"] for recipe in group["recipes"]] == [[0, 1], [0, 1]]
    student = next(model for model in group["models"] if model["kind"] == "student")
    scores = [
        json.loads((tmp_path / run / "scores.json").read_text())["models"][-1]["scores"] for run in student["runs"]
    ]
    assert student["scores"]["bits_per_byte"]["mean"] == pytest.approx(sum(s["bits_per_byte"] for s in scores) / 2)
