"""python -m distill.store --verify finds every kind of damage and names it."""

import os
from pathlib import Path

import numpy as np
import pytest

from distill._store_writer import StoreWriter
from distill.responses import shard_file
from tests.stored import HEADER, add_artifact, command_in, fingerprint, write


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    return command_in(tmp_path, capsys, monkeypatch)


@pytest.fixture
def folder(tmp_path) -> Path:
    """40 rows in two shards: 0 to 31, 32 to 39."""
    return write(tmp_path / "s")


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)


def test_a_whole_store_is_whole(command, folder):
    code, said, _ = command(folder, "--verify")
    assert (code, said) == (0, f"{folder}: every row is whole.\n")


def test_damaged_rows_are_named_with_their_shard(command, folder):
    size = shard_file(folder, 0).stat().st_size
    flip(shard_file(folder, 0), size // 2)
    flip(shard_file(folder, 1), 3)  # the length of the first record: what follows cannot be found without the index
    code, said, _ = command(folder, "--verify")
    assert code == 1
    assert "shard-00000.bin: damaged in row 1" in said
    assert "shard-00001.bin: damaged in row 32\n" in said


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda s: shard_file(s, 1).unlink(),
            "shard-00001.bin: missing, with 8 rows: 32, 33, 34, 35, 36, 37, 38, 39\n",
        ),
        (lambda s: os.truncate(shard_file(s, 1), 10), "shard-00001.bin: damaged in 8 rows"),
        (lambda s: append(shard_file(s, 1), b"more"), "bytes, but its rows end at"),
        (lambda s: (s / "shard-00002.bin").write_bytes(b"x"), "shard-00002.bin: no row of the index lies in it"),
        (lambda s: edit(s, "index", 5, "offset", 1), "index.npy: points to the wrong place for row 5\n"),
        (lambda s: edit(s, "index", 5, "shard", 9), "index.npy: points to the wrong place for row 5\n"),
        (lambda s: edit(s, "index", 5, "prompt", 1), "index.npy: another length or source than that of row 5\n"),
        (lambda s: edit(s, "index", 5, "usable", False), "index.npy: another length or source than that of row 5\n"),
        (lambda s: edit(s, "numbers", 5, None, 6), "numbers.npy: not each row once"),
        (lambda s: edit(s, "keys", 39, None, 2**64 - 1), "keys.npy: another content hash than that of row 39\n"),
        (lambda s: edit(s, "keys", 5, None, 2**64 - 1), "keys.npy: not in order"),
        (lambda s: os.truncate(s / "index.npy", 200), "cannot be opened"),
        (lambda s: os.truncate(s / "keys.npy", 3), "cannot be opened"),
        (lambda s: (s / "numbers.npy").unlink(), "cannot be opened"),
        (lambda s: flip(s / "header.json", 3), "cannot be opened"),
        (lambda s: np.save(s / "keys.npy", np.load(s / "keys.npy")[:-1]), "keys.npy: 39 rows instead of 40"),
        (lambda s: reword(s, '"tokens": 120', '"tokens": 121'), "summary.json: 121 tokens, but there are 120"),
        (lambda s: reword(s, '"teacher": 40', '"teacher": 39'), "summary.json: sources {'teacher': 39}"),
    ],
)
def test_every_kind_of_damage_is_said(command, folder, damage, words):
    damage(folder)
    code, said, error = command(folder, "--verify")
    assert code == 1
    assert words in said
    assert error == ""


def append(file: Path, content: bytes) -> None:
    file.write_bytes(file.read_bytes() + content)


def edit(folder: Path, name: str, row: int, field: str | None, value: int) -> None:
    array = np.load(folder / f"{name}.npy")
    if field is None:
        array[row] = value
    else:
        array[field][row] = value
    np.save(folder / f"{name}.npy", array)


def reword(folder: Path, old: str, new: str) -> None:
    file = folder / "summary.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_all_stores_are_verified_and_the_worst_decides(command, tmp_path):
    store_folder = tmp_path / "outputs/store"
    whole, damaged = (add_artifact(store_folder, "responses", name) for name in (1, 2))
    scratch = store_folder / "responses" / f"{fingerprint(3)}.scratch"
    scratch.mkdir()
    StoreWriter(scratch, HEADER, [[0]])
    flip(shard_file(damaged, 1), 60)
    code, said, _ = command("--verify")
    assert code == 1
    assert f"{whole}: every row is whole." in said
    assert f"{damaged} is damaged:\n  shard-00001.bin: damaged in row 32\n" in said
    assert f"{scratch}: not checked" in said


def test_an_unfinished_store_is_not_called_damaged(command, tmp_path):
    (tmp_path / "s").mkdir()
    StoreWriter(tmp_path / "s", HEADER, [[0]])
    for arguments in ([], ["--verify"]):
        code, _, error = command(tmp_path / "s", *arguments)
        assert code == 1
        assert "no finished store" in error


def test_showing_a_damaged_row_names_the_shard(command, folder):
    flip(shard_file(folder, 0), 60)
    code, _, error = command(folder)
    assert code == 1
    assert "shard-00000.bin is damaged" in error
