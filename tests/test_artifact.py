"""An artifact exists if its manifest does; a fingerprint follows content."""

import json
import multiprocessing
import time

import pytest

from distill.artifact import MANIFEST, Artifact, fingerprint, hash_folder, locked, open_artifact, seal, write_whole


def test_an_artifact_exists_only_once_it_is_sealed(tmp_path):
    scratch, path = tmp_path / "x.scratch", tmp_path / "x"
    scratch.mkdir()
    (scratch / "weights").write_bytes(b"1234")
    assert open_artifact(path) is None and open_artifact(scratch) is None
    sealed = seal(scratch, Artifact("student", path, "abc", {"data": "d"}))
    assert open_artifact(path) == sealed
    assert not scratch.exists()
    assert json.loads((path / MANIFEST).read_text())["files"] == {"weights": 4}


def test_fingerprints_follow_settings_and_inputs_and_nothing_else():
    one = fingerprint(settings={"a": 1, "b": [1, 2]}, inputs={"x": "1"})
    assert one == fingerprint(settings={"b": [1, 2], "a": 1}, inputs={"x": "1"})
    assert one != fingerprint(settings={"a": 2, "b": [1, 2]}, inputs={"x": "1"})
    assert one != fingerprint(settings={"a": 1, "b": [1, 2]}, inputs={"x": "2"})


def test_a_folder_hash_follows_bytes_and_names_but_not_cards(tmp_path):
    (tmp_path / "a").write_text("1")
    before = hash_folder(tmp_path)
    (tmp_path / "README.md").write_text("card")
    assert hash_folder(tmp_path) == before
    (tmp_path / "a").write_text("2")
    changed = hash_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({before, changed, hash_folder(tmp_path)}) == 3


def test_write_whole_replaces_and_leaves_no_part(tmp_path):
    write_whole(tmp_path / "f", "old")
    write_whole(tmp_path / "f", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_text() == "new"


def _hold(path, seconds):
    with locked(path):
        time.sleep(seconds)


def test_the_second_waits_for_the_first_and_a_dead_holder_blocks_nobody(tmp_path):
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "lock", 60))
    holder.start()
    waited = []
    deadline = time.monotonic() + 30
    while not (tmp_path / "lock").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)

    def on_wait():
        waited.append(True)
        holder.kill()

    with locked(tmp_path / "lock", on_wait):
        assert waited == [True]
    holder.join()


def test_an_unlockable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), locked(tmp_path / "file" / "lock"):
        pass
