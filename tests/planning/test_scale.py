"""The tables of docs/scale.md are what the plan says today."""

import importlib.util

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("recipe", ["llama65b_to_7b", "bloom176b_to_560m"])
def test_docs_hold_the_plans_of_these_recipes(bench, recipe):
    docs = (ROOT / "docs" / "scale.md").read_text()
    for devices in bench.DEVICES:
        row = bench.planned(recipe, devices)
        assert row in docs, f"{recipe}: python benchmarks/scale.py --plan gives another row: {row}"


def test_docs_hold_the_sizes_of_the_store_and_the_hours_of_a_node(bench, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scale.py"])
    bench.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    docs = (ROOT / "docs" / "scale.md").read_text().splitlines()
    assert rows and not [row for row in rows if row not in docs]
