"""Every recipe that ships is rehearsed through the command: every stage, every compression, in its time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill import _hydra, shipped
from distill.recipe import YOURS, parse
from distill.stages._rehearsed import BANNER
from tests.conftest import cli_environment

MOST_BYTES = 3e9
MOST_CPU_SECONDS = 120
"""Of all its processes: a minute on two cores. The wall clock says what else the machine does."""


def overrides(name):
    return [f"recipe={name}", "rehearse=true"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped.recipes()))
def test_a_recipe_as_it_ships_is_rehearsed(name, tmp_path):
    command = [sys.executable, "-m", "distill", *overrides(name)]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, env=cli_environment(), stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
    text = (tmp_path / "said").read_text()
    assert os.waitstatus_to_exitcode(status) == 0, text
    (run,) = (tmp_path / "outputs" / name).iterdir()
    recipe = parse(_hydra.compose(overrides(name)).config)
    proofs = json.loads((run / "verification.json").read_text())
    assert [proof["package"] for proof in proofs if proof["verified"]] == list(recipe.compression)
    assert (run / "report.html").is_file()
    scored = {model["name"] for model in json.loads((run / "scores.json").read_text())["models"]}
    assert {"student", *recipe.baselines, *recipe.compression} <= scored
    summary = (run / "rehearsal.md").read_text()
    assert f"# Rehearsal of {name}: passed" in summary and summary in text
    assert "## Licences" in summary
    unproven = summary.partition("## Not proven")[2].partition("## Licences")[0]
    # what is on this disk comes with its own tokenizer; every other one is named
    theirs, own = recipe.teacher.tokenizer_from, getattr(recipe.student, "model", None)
    elsewhere = {name for name in (theirs and theirs[0], own) if name and not Path(name).is_dir()} - {YOURS}
    mark = ": its own tokenizer and chat template"
    said = {line[2:].partition(mark)[0] for line in unproven.splitlines() if mark in line}
    assert elsewhere == said
    for card in run.glob("packages/*/README.md"):
        assert BANNER in card.read_text() and "base_model" not in card.read_text()
    assert BANNER in (run / "report.html").read_text()
    # the user's own store is left alone
    assert not (tmp_path / "outputs" / "store").exists()
    assert used.ru_maxrss * 1024 < MOST_BYTES
    assert used.ru_utime + used.ru_stime < MOST_CPU_SECONDS, f"{used.ru_utime + used.ru_stime:.0f} s of CPU"


@pytest.mark.slow
def test_as_many_processes_as_torchrun_starts_train_together(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "distill"]
    command = [*launch, *overrides("gpt2xl_to_gpt2"), "compression=[bf16]", "baselines=[]"]
    ran = subprocess.run(command, cwd=tmp_path, env=cli_environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (run,) = (tmp_path / "outputs" / "gpt2xl_to_gpt2").iterdir()
    assert "2 processes" in (run / "rehearsal.md").read_text()
    events = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
    (trained,) = (event for event in events if event.get("name") == "train student")
    assert trained["world_size"] == 2
