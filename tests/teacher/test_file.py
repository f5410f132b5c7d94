"""The option `teacher=file`."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from distill.teacher.file import File
from tests.conftest import ROOT


def parsed(**settings) -> File:
    return TypeAdapter(File).validate_json(json.dumps({"kind": "file", **settings}))


def test_the_shipped_yaml_names_it():
    assert yaml.safe_load((ROOT / "conf/teacher/file.yaml").read_text()) == {"kind": "file"}


def test_existing_paths_become_absolute_and_hub_ids_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("{}")
    assert parsed(path="a.jsonl").path == str((tmp_path / "a.jsonl").resolve())
    assert parsed(path="org/set").path == "org/set"


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": "parquet"},
        {"top_k": 0},
        {"logprob_temperature": 0.0},
        {"targets": "sampled"},
        {"targets": "next", "logprob_temperature": 2.0},
        {"tokenizer": "bundled:nobody"},
        {"model": "x"},
    ],
)
def test_what_it_does_not_take(wrong):
    with pytest.raises(ValidationError):
        parsed(path="a.jsonl", **wrong)


def test_what_decides_the_stored_answers():
    text = parsed(path="a.jsonl", top_k=3).decides(None)
    assert text == parsed(path="b.jsonl", top_k=4).decides(None)
    assert parsed(path="a", top_k=3).decides("top_k") != parsed(path="a", top_k=4).decides("top_k")


def test_the_tokenizer_is_the_named_ones():
    assert parsed(path="a").tokenizer_from is None
    found = parsed(path="a", tokenizer="org/teacher", tokenizer_revision="v1").tokenizer_from
    assert found == ("org/teacher", "v1")
