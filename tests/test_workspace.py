"""distill/workspace.py: why something is made, in words."""

import json

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


def test_results_of_an_older_store_name_nothing(made, tmp_path):
    made("compress bf16", kind="bf16")
    [file] = (tmp_path / "store" / "package").glob("*/settings.json")
    old = json.loads(file.read_text())
    del old["name"]
    file.write_text(json.dumps(old))
    assert made("compress bf16", kind="bf16") == "sealed result exists"
    assert made("compress bf16", kind="bf16", new=1) == "first of its kind"
