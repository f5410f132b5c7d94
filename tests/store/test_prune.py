"""python -m distill.store --prune frees what no run names, and nothing else."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from tests.stored import add_artifact, command_in, fingerprint


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    return command_in(tmp_path, capsys, monkeypatch)


def add_run(folder: Path, *names: int) -> None:
    folder.mkdir(parents=True)
    lines = [json.dumps({"event": "stage", "fingerprint": fingerprint(name), "reused": True}) for name in names]
    (folder / "record.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def outputs(tmp_path) -> Path:
    """Artifacts 1 to 4; a run names 1 and 3, a second one 2. An interrupted run left 5, a stranger a folder."""
    store_folder = tmp_path / "outputs/store"
    for name, kind in enumerate(["responses", "student", "package", "responses"], start=1):
        add_artifact(store_folder, kind, name)
    add_run(tmp_path / "outputs/quickstart/2026-01-01_00-00-00", 1, 3)
    add_run(tmp_path / "outputs/other/2026-01-01_00-00-00", 2)
    scratch = store_folder / "responses" / f"{fingerprint(5)}.scratch"
    scratch.mkdir()
    (scratch / "answer").write_text("paid for")
    (store_folder / "hashes").mkdir()
    (store_folder / "hashes" / fingerprint(6)).write_text("a hash")
    for stranger in ("notes", "notes.scratch", "notes.pruned"):
        (store_folder / "mine" / stranger).mkdir(parents=True)
    (store_folder / "mine" / "notes" / "manifest.json").write_text('{"kind": "x", "fingerprint": "y", "inputs": {}}')
    return tmp_path / "outputs"


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock"}


def test_a_dry_run_deletes_nothing_and_says_so(command, outputs):
    before = tree(outputs)
    size = sum(file.stat().st_size for file in (outputs / "store/responses" / fingerprint(4)).iterdir())
    code, said, _ = command("--prune")
    assert code == 0
    assert f"unused  responses/{fingerprint(4)}  {size / 2**20:.2f} MiB" in said
    assert "2 runs name 3 artifacts, which stay" in said
    assert "Dry run: --yes frees" in said
    assert fingerprint(1) not in said
    assert tree(outputs) == before


def test_only_what_no_run_names_is_freed(command, outputs):
    before = tree(outputs)
    code, said, _ = command("--prune", "--yes")
    assert code == 0
    assert f"freed   responses/{fingerprint(4)}" in said
    gone = before - tree(outputs)
    assert gone == {path for path in before if path.startswith(f"store/responses/{fingerprint(4)}")}
    code, said, _ = command("--prune", "--yes")
    assert "0.00 MiB freed" in said


def test_what_an_interrupted_run_can_go_on_from_is_freed_only_when_asked_for(command, outputs):
    scratch = outputs / "store/responses" / f"{fingerprint(5)}.scratch"
    assert "1 unfinished ones stay" in command("--prune", "--yes")[1]
    assert scratch.exists()
    assert f"{fingerprint(5)}.scratch" in command("--prune", "--unfinished")[1]
    assert scratch.exists()
    command("--prune", "--unfinished", "--yes")
    assert not scratch.exists()
    assert len(list((outputs / "store/mine").iterdir())) == 3, "what distill did not make stays"


@pytest.mark.parametrize("name", [f"{fingerprint(4)}", f"{fingerprint(5)}.scratch"])
def test_what_is_locked_is_never_touched(command, outputs, name):
    path = outputs / "store/responses" / name
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said, _ = command("--prune", "--unfinished", "--yes")
        assert code == 0
        assert f"in use  responses/{name}" in said
        assert path.exists()
    command("--prune", "--unfinished", "--yes")
    assert not path.exists()


def test_without_any_run_it_refuses(command, outputs):
    for record in outputs.glob("*/*/record.jsonl"):
        record.unlink()
    before = tree(outputs)
    code, _, error = command("--prune", "--yes")
    assert code == 2
    assert "no run is below" in error
    assert tree(outputs) == before


def test_runs_elsewhere_count_when_they_are_named(command, outputs, tmp_path):
    add_run(tmp_path / "elsewhere/run", 4)
    for runs in ("elsewhere/run", "elsewhere", "."):
        code, said, _ = command("--prune", "--yes", "--runs", runs)
        assert code == 0
        assert "0.00 MiB freed" in said
    code, _, error = command("--prune", "--yes", "--runs", "elsewhere", "--runs", outputs / "store")
    assert code == 2
    assert "no record.jsonl is there" in error
    assert (outputs / "store/responses" / fingerprint(4)).exists()


def test_a_store_elsewhere_still_knows_the_runs_here(command, outputs, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (outputs / "store").rename(tmp_path / "disk/store")
    monkeypatch.setenv("DISTILL_STORE", str(tmp_path / "disk/store"))
    assert "2 runs name 3 artifacts" in command("--prune", "--yes")[1]


def test_a_record_that_a_crash_cut_still_names_what_it_names(command, outputs):
    record = next(outputs.glob("other/*/record.jsonl"))
    record.write_text(f'{{"event": "stage", "fingerprint": "{fingerprint(2)}", "reu{{"event": "start"\n\x00\n')
    command("--prune", "--yes")
    assert (outputs / "store/student" / fingerprint(2)).exists()


def test_an_artifact_that_a_run_names_meanwhile_stays(command, outputs, monkeypatch):
    """A run begins to use it after the records were read: they are read again under the artifact's lock."""
    from distill.store import prune

    locked = prune.locked

    def run_first(path, on_wait):
        if not (outputs / "late").exists():
            add_run(outputs / "late/run", 4)
        return locked(path, on_wait)

    monkeypatch.setattr(prune, "locked", run_first)
    command("--prune", "--yes")
    assert (outputs / "store/responses" / fingerprint(4)).exists()


def test_an_interrupted_deletion_leaves_no_half_artifact_and_is_finished_later(command, outputs, monkeypatch):
    from distill.store import prune

    path = outputs / "store/responses" / fingerprint(4)

    def interrupted(folder, ignore_errors=False):
        if not ignore_errors:
            (folder / "header.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prune.shutil, "rmtree", interrupted)
        assert command("--prune", "--yes")[0] == 130
    assert not path.exists()
    assert list(outputs.glob("store/responses/*.pruned"))
    command("--prune", "--yes")
    assert not path.exists()
    assert not list(outputs.glob("store/responses/*.pruned"))


def test_files_that_a_package_shares_free_nothing(command, outputs):
    path = outputs / "store/responses" / fingerprint(4)
    for number, file in enumerate(path.iterdir()):
        os.link(file, outputs / f"other/linked-{number}")
    assert f"unused  responses/{fingerprint(4)}  0.00 MiB" in command("--prune")[1]
