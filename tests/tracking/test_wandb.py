"""W&B without a network: what a finished run leaves in the offline log, read back with W&B's own tool."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill.errors import StageFailed
from distill.tracking.none import NoTracking
from distill.tracking.wandb import Wandb, _chosen_mode

VERIFIED = "verification.json"
SAMPLE_RUN = Path(__file__).parents[1] / "stages" / "sample_run"


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # whatever a mistake in the code sends, it reaches nobody
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture
def run(tmp_path) -> Path:
    folder = Path(shutil.copytree(SAMPLE_RUN, tmp_path / "2026-11-22_03-10-05"))
    (folder / "report.html").write_text("<!doctype html><p>report</p>")
    return folder


def inspect(run: Path, *options: str):
    folders = sorted((run / "wandb").glob("offline-run-*"))
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folders[-1])]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(text) if options else [json.loads(line) for line in text.splitlines()]


def test_an_offline_run_holds_everything_and_prints_nothing(run, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["distill", "extra.hub_token=hf_77"])
    with (run / "recipe.yaml").open("a") as file:
        file.write("extra: {api_key: sk-1234, hub_token: hf_99, nested: {password: abcd}, max_new_tokens: 64}\n")
    line = Wandb(kind="wandb", project="p", tags=["t"]).log_run(run)
    assert capfd.readouterr() == ("", "")
    (folder,) = (run / "wandb").glob("offline-run-*")
    found = inspect(run, "--summary")
    assert line == f"W&B run {found['run_id']} (offline; upload with: wandb sync {folder})"
    assert (found["state"], found["project"], found["name"]) == ("finished", "p", "quickstart 2026-11-22_03-10-05")

    config = found["config"]
    assert config["recipe"]["loss"] == {"kind": "forward_kl", "temperature": 1}
    assert config["recipe"]["extra"]["max_new_tokens"] == 64 and config["versions"]["wandb"] == "0.31.0"
    raw = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"quickstart" in raw and not any(secret in raw for secret in (b"sk-1234", b"hf_99", b'abcd"', b"hf_77"))

    for entry in json.loads((run / "scores.json").read_text())["models"]:
        for name, value in {**entry["scores"], "bytes": entry["bytes"], "verified": entry["verified"]}.items():
            assert found["summary"].get(f"{entry['name']}/{name}") == value
    assert found["summary"]["gguf_q8_0/kl_to_student_nats"] == 1.9e-4
    assert found["summary"]["gguf_q8_0/decode_tokens_per_second"] == 2411

    check_records(inspect(run), json.loads((run / "samples.json").read_text()), folder)


def check_records(records: list, samples: list, folder: Path) -> None:
    """Group, curves against tokens, the samples' table and the artifact."""
    text = json.dumps(records)
    assert '"quickstart"' in text and '"distill"' in text
    metrics = [json.loads(line) for line in (SAMPLE_RUN / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in histories(records) if any(key.endswith("/loss_nats") for key in line)]
    assert len(logged) == len(metrics) == 174
    for written, line in zip(metrics, logged, strict=True):
        model = written.pop("model")
        assert {key: line[f"{model}/{key}"] for key in written} == written
    for model in ("student", "bnb_nf4_lora"):
        assert f"{model}/tokens" in text.split(f'"{model}/*"')[1][:200]
    (table,) = folder.rglob("samples*.table.json")
    held = json.loads(table.read_text())
    assert held["columns"][:3] == ["prompt", "reference", "teacher"] and len(held["data"]) == len(samples)
    assert (
        held["data"][2][0] == samples[2]["prompt"]
        and held["data"][1][held["columns"].index("student correct")] is False
    )
    assert "quickstart-run" in text and '"report.html"' in text and '"recipe.yaml"' in text


def test_samples_that_nobody_judged_have_no_columns_of_verdicts(run):
    samples = json.loads((run / "samples.json").read_text())
    (run / "samples.json").write_text(json.dumps([{**sample, "correct": {}} for sample in samples]))
    Wandb(kind="wandb").log_run(run)
    (table,) = run.rglob("samples*.table.json")
    assert json.loads(table.read_text())["columns"] == ["prompt", "reference", *samples[0]["answers"]]


def test_packages_stand_in_one_table_with_what_they_cost_and_in_one_chart(run):
    """A row a model, as scores.json and verification.json have it; what does not load has a row without figures."""
    scores = json.loads((run / "scores.json").read_text())
    scores["models"].append({"name": "broken", "kind": "package", "bytes": None, "scores": {}, "speed": {}})
    (run / "scores.json").write_text(json.dumps(scores))
    Wandb(kind="wandb").log_run(run)
    (folder,) = (run / "wandb").glob("offline-run-*")
    (table,) = folder.rglob("models*.table.json")
    held = json.loads(table.read_text())
    rows = {row[0]: dict(zip(held["columns"], row, strict=True)) for row in held["data"]}
    apart = {proof["package"]: proof["kl_to_student_nats"] for proof in json.loads((run / VERIFIED).read_text())}
    assert list(rows) == [model["name"] for model in scores["models"]]
    for model in scores["models"]:
        own = {**model["scores"], **model["speed"], "kind": model["kind"], "bytes": model["bytes"]}
        assert {name: rows[model["name"]][name] for name in own} == own
        assert rows[model["name"]]["kl_to_student_nats"] == apart.get(model["name"])
    assert rows["broken"]["exact_match"] is None and rows["broken"]["verified"] is None

    (drawn,) = folder.rglob("quality_against_bytes*.table.json")
    assert [row[0] for row in json.loads(drawn.read_text())["data"]] == [name for name in rows if name != "broken"]
    text = json.dumps(inspect(run))
    assert '"wandb/scatter/v0"' in text and '{"x": "bytes", "y": "exact_match"}' in text


def test_a_run_of_which_nothing_loaded_is_logged_without_a_chart(run):
    scores = json.loads((run / "scores.json").read_text())
    scores["models"] = [{"name": "bf16", "kind": "package", "bytes": None, "scores": {}, "speed": {}}]
    (run / "scores.json").write_text(json.dumps(scores))
    Wandb(kind="wandb").log_run(run)
    assert list(run.rglob("models*.table.json")) and not list(run.rglob("quality_against_bytes*"))


def histories(records: list) -> list[dict]:
    """The logged values of each history record, whatever the tool wraps them in."""
    found = []
    for record in records:
        if record.get("type") == "history" or "history" in record:
            body = record.get("history") or record.get("data") or record
            items = body.get("items") or body.get("item") or body
            if isinstance(items, list):
                items = {i.get("key") or "/".join(i["nested_key"]): json.loads(i["value_json"]) for i in items}
            found.append(items)
    return found


def test_group_can_be_chosen_and_every_call_is_a_run_of_its_own(run):
    Wandb(kind="wandb", group="sweep-7", mode="offline").log_run(run)
    assert '"sweep-7"' in json.dumps(inspect(run))
    Wandb(kind="wandb", mode="offline").log_run(run)
    assert len(list((run / "wandb").glob("offline-run-*"))) == 2


def test_the_command_that_uploads_can_be_typed_as_it_stands(run):
    spaced = run.rename(run.with_name("My projects"))
    line = Wandb(kind="wandb").log_run(spaced)
    command = line.partition("upload with: ")[2].removesuffix(")")
    (folder,) = (spaced / "wandb").glob("offline-run-*")
    assert shlex.split(command) == ["wandb", "sync", str(folder)]


def test_a_folder_with_scores_alone_is_logged(run):
    for name in ("metrics.jsonl", "samples.json", "verification.json", "record.jsonl", "recipe.yaml", "report.html"):
        (run / name).unlink()
    assert Wandb(kind="wandb").log_run(run).startswith("W&B run ")
    assert inspect(run, "--summary")["summary"]["student/exact_match"] == 0.896


def test_a_key_that_the_server_cannot_check_keeps_the_run_offline(run, monkeypatch, capfd):
    import wandb

    real, asked = wandb.init, []

    def init(**settings):
        asked.append(settings["mode"])
        if settings["mode"] == "online":
            raise wandb.errors.CommError("connection refused.\nlong story")
        return real(**settings)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    line = Wandb(kind="wandb").log_run(run)
    assert asked == ["online", "offline"] and "(offline; could not go online: connection refused; upload with" in line
    assert capfd.readouterr() == ("", "")


def test_online_and_not_logged_in_stops_with_the_next_command(run):
    with pytest.raises(StageFailed, match="wandb login"):
        Wandb(kind="wandb", mode="online").log_run(run)


def test_disabled_and_none_leave_nothing(run, monkeypatch):
    assert NoTracking(kind="none").log_run(run) is None
    assert Wandb(kind="wandb", mode="disabled").log_run(run) is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert Wandb(kind="wandb").log_run(run) is None
    assert not (run / "wandb").exists()


def test_an_unknown_mode_in_the_environment_is_named(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of-line")
    with pytest.raises(StageFailed, match="WANDB_MODE=of-line"):
        Wandb(kind="wandb").log_run(run)


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": "x" * 40}, None, "online"),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_MODE": "dryrun"}, None, "offline"),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "wandb.example.org", "online"),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "other.example.org", "offline"),
    ],
)
def test_auto_is_online_only_where_the_user_is_logged_in(environment, netrc, mode, monkeypatch, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / "netrc").write_text(f"machine {netrc} login user password secret\n")
        (tmp_path / "netrc").chmod(0o600)
    assert _chosen_mode() == mode
