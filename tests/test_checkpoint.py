"""Checkpoints from a hub: what is downloaded, at which revision, and weights that are there as .bin files alone."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from distill._bin_weights import as_safetensors
from distill.errors import RecipeError
from tests.conftest import cli_environment
from tests.hub_stand_in import commit, hub_of

TINY = OPTConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, ffn_dim=32, num_attention_heads=2, word_embed_proj_dim=16,
    max_position_embeddings=20,
)  # fmt: skip


def bin_checkpoint(folder, num_shards):
    """A model as torch saved it before safetensors; its head and embeddings are one tensor."""
    torch.manual_seed(0)
    model = OPTForCausalLM(TINY)
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    state = model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.decoder.embed_tokens.weight"].data_ptr()
    names = sorted(state)
    if num_shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return model
    weight_map = {}
    for number in range(num_shards):
        file = f"pytorch_model-{number + 1:05}-of-{num_shards:05}.bin"
        torch.save({name: state[name] for name in names[number::num_shards]}, folder / file)
        weight_map |= dict.fromkeys(names[number::num_shards], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return model


@pytest.mark.parametrize("num_shards", [1, 3])
def test_bin_weights_become_the_same_model(tmp_path, num_shards):
    model = bin_checkpoint(tmp_path / "source", num_shards)
    target = as_safetensors(tmp_path / "source", tmp_path / "cache" / "abc")
    assert not list(target.glob("*.bin*")) and len(list(target.glob("*.safetensors"))) == num_shards
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    ids = torch.arange(9)[None]
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    before = target.stat().st_mtime_ns
    assert as_safetensors(tmp_path / "source", target) == target and target.stat().st_mtime_ns == before


def test_of_processes_that_want_the_same_weights_one_converts(tmp_path):
    bin_checkpoint(tmp_path / "source", 3)
    # all have imported what they need and wait here, so that they start together
    code = (
        "import sys, time; from pathlib import Path; import torch, safetensors.torch\n"
        "from distill._bin_weights import as_safetensors\n"
        "source, target, go, ready = map(Path, sys.argv[1:]); ready.touch()\n"
        "while not go.exists(): time.sleep(0.005)\n"
        "made = as_safetensors(source, target); print(made, (made / 'config.json').stat().st_ino)"
    )
    go, target = tmp_path / "go", tmp_path / "cache" / "abc"
    waiting = [tmp_path / f"ready-{number}" for number in range(3)]
    command = [sys.executable, "-c", code, tmp_path / "source", target, go]
    running = [
        subprocess.Popen([*command, ready], env=cli_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for ready in waiting
    ]
    patience = time.monotonic() + 120
    while not all(ready.exists() for ready in waiting) and time.monotonic() < patience:
        time.sleep(0.05)
    go.touch()
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    # one folder, made once: each saw the same file in it
    assert {out.decode().strip() for out, _ in said} == {f"{target} {(target / 'config.json').stat().st_ino}"}
    assert len(list(target.glob("*.safetensors"))) == 3


def test_a_bin_file_that_would_run_something_is_refused(tmp_path):
    bin_checkpoint(tmp_path / "source", 1)

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"weight": Runs()}, tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="cannot be read as weights alone") as refused:
        as_safetensors(tmp_path / "source", tmp_path / "target")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "target").exists()
    assert len(str(refused.value).splitlines()) <= 6
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1})[:-3])
    with pytest.raises(RecipeError, match="cannot be read as weights alone"):
        as_safetensors(tmp_path / "source", tmp_path / "target")


def test_a_missing_shard_is_named(tmp_path):
    bin_checkpoint(tmp_path / "source", 3)
    (tmp_path / "source" / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(RecipeError, match=r"pytorch_model-00002-of-00003\.bin is missing"):
        as_safetensors(tmp_path / "source", tmp_path / "target")


def fetch(endpoint, home, name, revision="None", *, what="local_folder", **variables):
    """`local_folder`, or `what`, in a process of its own: the hub's client reads its settings when it is imported."""
    code = (
        f"import sys; from distill.checkpoint import {what}; from distill.errors import RecipeError\n"
        f"try: print({what}({name!r}, {revision}))\n"
        "except RecipeError as error: sys.exit(str(error))"
    )
    environment = {
        **cli_environment(),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        **variables,
    }
    environment.pop("HF_TOKEN", None)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_a_download_takes_the_revision_and_leaves_code_and_doubles(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, text in ((first, "{}"), (second, '{"model_type": "opt"}')):
        folder.mkdir()
        (folder / "config.json").write_text(text)
        for name in ("model.safetensors", "consolidated.safetensors", "modeling_evil.py", "pytorch_model.bin"):
            (folder / name).write_bytes(b"x")
    with hub_of({"org/model": {"main": first, "refs/pr/7": second}}) as (endpoint, asked):
        run = fetch(endpoint, tmp_path / "home", "org/model", "'refs/pr/7'")
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip().endswith(commit(second))
        assert sorted(asked) == ["config.json", "model.safetensors"]
        unknown = fetch(endpoint, tmp_path / "home", "org/model", "'v9'")
    assert unknown.returncode == 1 and "org/model: the hub did not give this checkpoint" in unknown.stderr


def test_a_served_teachers_tokenizer_comes_without_its_weights(tmp_path):
    """They are served somewhere else, and may be hundreds of gigabytes."""
    small = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja"]
    folder = tmp_path / "teacher"
    folder.mkdir()
    for name in (*small, "model.safetensors", "pytorch_model.bin", "modeling_evil.py"):
        (folder / name).write_text(json.dumps({"name": name}))
    with hub_of({"org/huge": {"main": folder}}) as (endpoint, asked):
        run = fetch(endpoint, tmp_path / "home", "org/huge", what="tokenizer_folder")
        assert run.returncode == 0, run.stderr
        assert sorted(asked) == sorted(small)
        unknown = fetch(endpoint, tmp_path / "home", "org/other", what="tokenizer_folder")
    assert sorted(file.name for file in Path(run.stdout.strip()).iterdir()) == sorted(small)
    assert unknown.returncode == 1 and "org/other: the hub did not give this tokenizer" in unknown.stderr


def test_weights_that_the_hub_has_as_bin_alone_are_converted_beside_its_cache(tmp_path):
    bin_checkpoint(tmp_path / "opt", 2)
    with hub_of({"org/opt": {"main": tmp_path / "opt"}}) as (endpoint, _):
        run = fetch(endpoint, tmp_path / "home", "org/opt")
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "home" / "distill" / "org--opt" / commit(tmp_path / "opt")
    assert run.stdout.strip() == str(folder)
    with safe_open(folder / "model-00001-of-00002.safetensors", "pt") as file:
        assert "lm_head.weight" in file.keys()  # noqa: SIM118


def test_a_tokenizer_on_the_hub_that_an_export_cannot_express_is_refused_before_anything_runs(tmp_path, tiny_teacher):
    shutil.copytree(tiny_teacher, tmp_path / "right")
    shutil.copytree(tiny_teacher, tmp_path / "wrong")
    file = tmp_path / "wrong" / "tokenizer.json"
    spec = json.loads(file.read_text())
    file.write_text(json.dumps({**spec, "normalizer": {"type": "Lowercase"}}))
    shutil.copytree(tiny_teacher, tmp_path / "short")
    file = tmp_path / "short" / "config.json"
    few = json.loads(file.read_text())["vocab_size"] - 1
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": few}))
    code = (
        "import sys; from distill import _hydra; from distill.recipe import parse; from distill.checks import check\n"
        "from distill.errors import RecipeError\n"
        "try: check(parse(_hydra.compose(sys.argv[1:]).config))\n"
        "except RecipeError as error: sys.exit(str(error))"
    )
    repositories = {f"org/{name}": {"main": tmp_path / name} for name in ("right", "wrong", "short")}
    asked = [("right", "gguf_q8_0"), ("wrong", "gguf_q8_0"), ("wrong", "bf16"), ("short", "gguf_q8_0")]
    said = dict.fromkeys(asked, "")
    with hub_of(repositories) as (endpoint, _):
        environment = cli_environment(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0")
        for name, compression in said:
            typed = [
                *("recipe=quickstart", "data.num_rows=200", "teacher=none", "loss=text", "student=pretrained"),
                *(f"student.model=org/{name}", "baselines=[]", f"compression=[{compression}]"),
                *("training.max_length=96", "evaluation.max_new_tokens=16"),
            ]
            command = [sys.executable, "-c", code, *typed]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
            said[name, compression] = ran.stderr.strip() if ran.returncode else "passed"
    assert said["right", "gguf_q8_0"] == said["wrong", "bf16"] == "passed", said
    assert "compression=gguf_q8_0" in said["wrong", "gguf_q8_0"] and "Lowercase" in said["wrong", "gguf_q8_0"]
    assert f"the model only {few} embeddings" in said["short", "gguf_q8_0"]


def test_a_gated_repository_without_a_token_is_refused(tmp_path):
    bin_checkpoint(tmp_path / "opt", 1)
    with hub_of({"org/opt": {"main": tmp_path / "opt"}}, gated=frozenset({"org/opt"})) as (endpoint, asked):
        run = fetch(endpoint, tmp_path / "home", "org/opt")
    assert run.returncode == 1 and not asked
    assert "GatedRepoError" in run.stderr and len(run.stderr.splitlines()) <= 6
