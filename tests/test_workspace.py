"""distill/workspace.py: why something is made, in words."""

import json
import re
from pathlib import Path

import pytest

from distill.record import RunRecord
from distill.workspace import Workspace


@pytest.fixture
def made(tmp_path):
    """made(name, **settings) makes a package and gives the reason that the record keeps."""
    (tmp_path / "run").mkdir()
    workspace = Workspace(RunRecord(tmp_path / "run", recipe="r", seed=0), tmp_path / "store")

    def made(name, **settings):
        workspace.produce("package", name, settings=settings, inputs={"student": "s"}, make=lambda scratch: None)
        return json.loads((tmp_path / "run" / "record.jsonl").read_text().splitlines()[-1])["why"]

    return made


def test_a_sibling_is_not_what_changed(made):
    assert made("compress bf16", kind="bf16") == "first of its kind"
    assert made("compress bnb_int8", kind="bnb_int8", outlier_threshold=6.0) == "first of its kind"
    assert made("compress bf16", kind="bf16") == "sealed result exists"


def test_what_changed_under_the_same_name_is_said(made):
    made("compress bnb_int8", kind="bnb_int8", outlier_threshold=6.0)
    made("compress bf16", kind="bf16")
    assert made("compress bnb_int8", kind="bnb_int8", outlier_threshold=5.0) == "new: outlier_threshold changed"
    # the nearest of several
    assert made("compress bnb_int8", kind="bnb_int8", outlier_threshold=5.0, rest=1) == "new: rest changed"


def test_the_terminal_says_why_once_and_stands_in_columns(made, capsys):
    for name in ("teach", "evaluate baseline_no_teacher", "teach"):
        made(name, kind=name)
    assert re.sub(r"in \d s", "in 0 s", capsys.readouterr().err).splitlines() == [
        "teach                        starts (first of its kind)",
        "teach                        made in 0 s",
        "evaluate baseline_no_teacher starts (first of its kind)",
        "evaluate baseline_no_teacher made in 0 s",
        "teach                        reused",
    ]


def test_a_folder_without_its_manifest_is_made_again(made, tmp_path):
    """Somebody deleted the manifest, or was killed while a damaged store was opened again."""
    made("compress bf16", kind="bf16")
    [manifest] = (tmp_path / "store" / "package").glob("*/manifest.json")
    manifest.unlink()
    (manifest.parent / "left").write_text("over")
    assert made("compress bf16", kind="bf16") != "sealed result exists"
    assert made("compress bf16", kind="bf16") == "sealed result exists"
    assert manifest.exists() and not (manifest.parent / "left").exists()


@pytest.mark.parametrize("killed_in", ["rename", "unlink"])
def test_a_kill_while_a_store_is_opened_again(tmp_path, monkeypatch, killed_in):
    """What was answered is in the sealed folder or in the scratch folder, and the next run goes on from there."""
    (tmp_path / "run").mkdir()
    workspace = Workspace(RunRecord(tmp_path / "run", recipe="r", seed=0), tmp_path / "store")
    found = []

    def make(scratch):
        found.append(sorted(file.name for file in scratch.iterdir()))
        (scratch / "shard").write_text("answers")

    def produce():
        return workspace.produce("responses", "teach", settings={}, inputs={}, make=make)

    sealed = produce()

    def kill(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as killing, pytest.raises(KeyboardInterrupt):
        killing.setattr(Path, killed_in, kill)
        workspace.reopen(sealed)
    assert produce().path == sealed.path and (sealed.path / "shard").read_text() == "answers"
    assert killed_in == "rename" or "shard" in found[-1]
    files = json.loads((sealed.path / "manifest.json").read_text())["files"]
    assert set(files) == {"settings.json", "shard"}


def test_results_of_an_older_store_name_nothing(made, tmp_path):
    made("compress bf16", kind="bf16")
    [file] = (tmp_path / "store" / "package").glob("*/settings.json")
    old = json.loads(file.read_text())
    del old["name"]
    file.write_text(json.dumps(old))
    assert made("compress bf16", kind="bf16") == "sealed result exists"
    assert made("compress bf16", kind="bf16", new=1) == "first of its kind"
