"""The command, whole, on one device: every stage of it, and every compression that is installed there."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.gpu.conftest import process_environment

pytestmark = pytest.mark.slow
BITSANDBYTES = ["bnb_int8", "bnb_nf4", "bnb_nf4_lora"]


def packages_for(device):
    """On a CPU tests/test_pipeline.py makes the others."""
    found = importlib.util.find_spec
    more = BITSANDBYTES * (found("bitsandbytes") is not None)
    more += ["gguf_q8_0"] * (found("gguf") is not None and found("xllamacpp") is not None)
    return ["bf16", *(more if device == "cuda" else [])]


@pytest.fixture
def ran(device, tmp_path, tiny_run_arguments):
    """A finished run: its folder, and the names of its packages."""
    packages = packages_for(device)
    # random weights are not what the bars of verification are made for
    lenient = [f"compression.{name}.max_kl_nats=5" for name in packages]
    few = ["compression.bnb_nf4_lora.max_steps=4"] if "bnb_nf4_lora" in packages else []
    arguments = [*tiny_run_arguments, f"compression=[{','.join(packages)}]", *lenient, *few]
    arguments += ["teacher.targets=sampled", "baselines=[baseline_text]", f"hydra.run.dir={tmp_path}/run"]
    command = [sys.executable, "-m", "distill", *arguments]
    process = subprocess.run(
        command, cwd=tmp_path, env=process_environment(device), capture_output=True, text=True, timeout=400
    )
    logs = "".join(log.read_text()[-2000:] for log in tmp_path.rglob("process.log"))
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:] + logs
    return tmp_path / "run", packages


def test_a_whole_run_works_on_the_device(ran, device):
    run, packages = ran
    models = {model["name"]: model for model in json.loads((run / "scores.json").read_text())["models"]}
    assert list(models) == ["teacher", "baseline_text", "student", *packages]
    for name, model in models.items():
        assert model["speed"]["device"] == ("cpu" if name.startswith("gguf") else device), name
        assert model["speed"]["decode_tokens_per_second"] > 0 and model["scores"]["bits_per_byte"] > 0
    assert all(models[name]["verified"] for name in packages)
    proofs = {proof["package"]: proof for proof in json.loads((run / "verification.json").read_text())}
    assert all(proofs[name]["bit_equal_reload"] for name in packages if name in {"bnb_int8", "bnb_nf4"})
    assert (run / "report.html").stat().st_size > 1000
    events = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
    made = {event["name"]: event for event in events if event["event"] == "stage"}
    for name in ("teach", "train student", "evaluate student"):
        assert ("gpu_peak_bytes" in made[name]) == (device == "cuda"), name
        assert made[name].get("gpu_peak_bytes", 1) > 0 and made[name]["peak_bytes"] > 1e8
    assert (events[0]["hardware"]["gpu"] is None) == (device == "cpu")
    curve = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert curve
