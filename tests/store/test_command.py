"""python -m distill.store says what is there, and what is wrong with its arguments."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from distill._store_writer import StoreWriter
from distill.responses import Header, Row
from distill.targets.next_token import NextTokenTargets
from tests.conftest import cli_environment
from tests.stored import HEADER, KEPT, TARGETS, add_artifact, command_in, fingerprint, write

SHOWN = {
    "sampled": "2 3/4  3 1/4  entropy 0.750 nats",
    "top_k": "2 0.500  3 0.250  tail 0.25  its own 0.25 (-1.386 nats)",
    # -1.38629 in float16
    "dense": "2 0.500  3 0.250  1 0.125  0 0.062  4 0.062  its own 0.25 (-1.387 nats)",
    "next": "its own 0.25 (-1.386 nats)",
    "frozen_head": "entropy 0.500 nats, a vector of length 5",
}


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    return command_in(tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("kind", list(TARGETS))
def test_one_store_shows_header_counts_and_the_teachers_alternatives(command, tmp_path, kind):
    header = replace(HEADER, kind=kind, kept=KEPT.get(kind, 0), num_rows=5)
    code, said, _ = command(write(tmp_path / "s", header), "--rows", "2")
    assert code == 0
    for words in ("tiny", "main", "test 1", "float32", kind, "8 tokens", "of no folder"):
        assert words in said
    assert "rows           5\n" in said
    assert "tokens         15, 5 positions with targets" in said
    assert "sources        teacher 5" in said
    assert "response  answer 0\n" in said
    assert "response  answer 2\n" in said, "rows are spread over the store"
    assert said.count("  prompt    2 ids: 1 2\n") == 2
    assert said.count(f"token 2     3  ←  {SHOWN[kind]}\n") == 2


def test_bytes_per_token_are_all_files_by_all_tokens(command, tmp_path):
    folder = write(tmp_path / "s")
    size = sum(file.stat().st_size for file in folder.iterdir())
    # two bytes of entropy, and two entries of 3 + 2 bits
    assert f"{size / 120:.2f}, {4 * 40 / 120:.2f} of them targets ({size:,} bytes in all)" in command(folder)[1]


def test_alternatives_are_of_the_right_position(command, tmp_path):
    """Position s of the targets is what the teacher expected after token T - 1 - S + s."""
    ids = np.array([7, 6, 5, 4, 3], dtype=np.int32)
    targets = NextTokenTargets(np.array([-1.0, -2.0, -3.0, -4.0], dtype=np.float32))
    header = replace(HEADER, kind="next", kept=0, num_rows=2)
    (tmp_path / "s").mkdir()
    writer = StoreWriter(tmp_path / "s", header, [[0, 1]])
    for _ in writer.missing():
        # all positions have targets; then the last two alone
        writer.write([Row(0, "", "teacher", ids, 2, targets), Row(1, "", "teacher", ids, 1, targets.part(2, 4))])
    writer.finish()
    first, second = command(tmp_path / "s")[1].split("row 1 ")
    shown = [[line.split()[1:] for line in part.splitlines() if "←" in line] for part in (first, second)]
    assert [(line[0], line[1], line[6]) for line in shown[0]] == [
        ("2", "5", "(-2.000"),
        ("3", "4", "(-3.000"),
        ("4", "3", "(-4.000"),
    ]
    assert [(line[0], line[1], line[6]) for line in shown[1]] == [("3", "4", "(-3.000"), ("4", "3", "(-4.000")]


def test_a_store_of_text_and_what_a_terminal_would_obey(command, tmp_path):
    header = Header(teacher="an API", engine="server", dtype="unknown", kind="text", num_rows=1)
    folder = write(tmp_path / "s", header, "[red]\x1b[2J\u202e ü 🦉" + 900 * "x")
    code, said, _ = command(folder)
    assert code == 0
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert r"[red]\x1b[2J\u202e ü 🦉xxx" in said
    assert "x … x" in said
    assert "prompt" not in said


def test_tokens_are_text_with_the_teachers_own_tokenizer_only(command, tmp_path):
    from distill.encoding import tokenizer_hash, train_tokenizer

    tokenizer = train_tokenizer(["How many apples are left?"], 300)
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    ids = np.array(tokenizer("How many apples are left?")["input_ids"], dtype=np.int32)
    header = replace(HEADER, kind="next", kept=0, vocab_size=512, num_rows=1, tokenizer_hash=tokenizer_hash(tokenizer))
    for name, head in (("own", header), ("other", replace(header, tokenizer_hash="another"))):
        (tmp_path / name).mkdir()
        writer = StoreWriter(tmp_path / name, head, [[0]])
        for _ in writer.missing():
            targets = NextTokenTargets(np.zeros(len(ids) - 1, dtype=np.float32))
            writer.write([Row(0, "r", "teacher", ids, len(ids) - 1, targets)])
        writer.finish()
    code, said, _ = command(tmp_path / "own", "--tokenizer", "checkpoint")
    assert code == 0
    assert "prompt    How many apples are left\n" in said
    assert "'?'  ←" in said
    code, said, error = command(tmp_path / "other", "--tokenizer", "checkpoint")
    assert code == 2
    assert "another" in error
    assert tokenizer_hash(tokenizer) in error


def test_the_list_has_one_line_a_store_and_says_what_is_unfinished_or_unreadable(command, tmp_path):
    folder = tmp_path / "outputs/store"
    path = add_artifact(folder, "responses", 1)
    add_artifact(folder, "student", 2)
    size = (
        sum(f.stat().st_size for f in path.iterdir() if f.name != "manifest.json")
        + (path / "manifest.json").stat().st_size
    )
    scratch = folder / "responses" / f"{fingerprint(3)}.scratch"
    scratch.mkdir()
    StoreWriter(scratch, replace(HEADER, teacher="busy"), [[0]])
    (folder / "responses" / fingerprint(4)).mkdir()
    (folder / "responses" / fingerprint(4) / "header.json").write_text("{")
    two = folder / "responses" / fingerprint(5)
    write(two / "second", replace(HEADER, teacher="one of several", kind="text", vocab_size=None))
    code, said, _ = command()
    assert code == 0
    lines = {line.split()[-1]: line.split() for line in said.splitlines()[1:6] if line}
    assert lines[fingerprint(1)] == ["tiny", "sampled", "40", "120", f"{size / 120:.2f}", fingerprint(1)]
    assert lines[f"{fingerprint(3)}.scratch"][:4] == ["busy", "sampled", "40", "unfinished"]
    assert lines[fingerprint(4)][1] == "unreadable"
    assert lines[f"{fingerprint(5)}/second"] == [
        "one",
        "of",
        "several",
        "text",
        "40",
        "0",
        "–",
        f"{fingerprint(5)}/second",
    ]
    assert len(lines) == 4
    assert command(folder)[1] == said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "missing is no folder"),
        ([], "outputs/store is no folder"),
        (["."], "neither a store of responses nor the folder of all artifacts"),
        (["--rows", "-1"], "0 or more"),
        (["--rows", "many"], "invalid int value"),
        (["--wrong"], "unrecognized arguments"),
        (["s", "--yes"], "means nothing without --prune"),
        (["s", "--runs", "."], "means nothing without --prune"),
        (["s", "--verify", "--prune"], "only one of them"),
        (["s", "--prune"], "one artifact"),
        (["s", "--tokenizer", "missing"], "--tokenizer missing is no folder"),
        (["s", "--tokenizer", "s"], "no tokenizer could be loaded"),
    ],
)
def test_a_wrong_argument_is_a_short_message_and_exit_code_2(command, tmp_path, arguments, words):
    write(tmp_path / "s", replace(HEADER, num_rows=1))
    code, said, error = command(*arguments)
    assert code == 2
    assert words in error
    assert said == ""


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path):
    write(tmp_path / "s")
    ask = f"{sys.executable} -m distill.store s --rows 40 | head -1; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, env=cli_environment())
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("teacher")
