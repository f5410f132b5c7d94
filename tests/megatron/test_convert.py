"""A converted checkpoint is the model it came from, bit for bit, whatever the version and however it was cut."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.megatron import convert
from tests.megatron.conftest import HEADS, POSITIONS, TOKENS

VERSIONS = [0, 1.0, 2.0, 3.0]


def logits(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.randint(TOKENS, (3, POSITIONS), generator=generator)).logits


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_converted_model_says_what_the_original_says(version, ranks, original, written, tmp_path):
    made = convert(written(version, ranks), tmp_path / "out", heads=HEADS, num_tokens=TOKENS)
    assert (made.version, made.num_ranks, made.tokenizer_files) == (version, ranks, [])
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert converted.dtype == torch.float32
    assert torch.equal(logits(converted), logits(original))


@pytest.mark.parametrize(("ranks", "stages"), [(1, 2), (2, 4)])
def test_pipeline_stages_follow_each_other(ranks, stages, original, written, tmp_path):
    convert(written(3.0, ranks, stages), tmp_path / "out", num_tokens=TOKENS)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(converted), logits(original))


@pytest.mark.parametrize(("ranks", "stages"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_distributed_optimizers_folders_are_passed_over(ranks, stages, original, written, tmp_path):
    """As Megatron wrote them first: the model in model_rng.pt, a folder for each data-parallel rank beside it."""
    save = written(3.0, ranks, stages)
    for file in list(save.rglob("model_optim_rng.pt")):
        for number in range(4):
            folder = file.parent.with_name(f"{file.parent.name}_{number:03d}")
            folder.mkdir()
            torch.save({"optimizer": {"exp_avg": torch.zeros(3)}}, folder / "optim.pt")
        file.rename(file.with_name("model_rng.pt"))
    made = convert(save, tmp_path / "out", num_tokens=TOKENS)
    assert made.num_ranks == ranks
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(converted), logits(original))


def test_shards_hold_everything_once_and_load(original, written, tmp_path):
    out = tmp_path / "out"
    made = convert(written(2.0, 2), out, num_tokens=TOKENS, shard_bytes=60_000)
    shards = sorted(out.glob("model-*-of-*.safetensors"))
    assert len(shards) > 3 and not list(out.glob("*.part"))
    where = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    held = {}
    for shard in shards:
        with safe_open(shard, "pt") as opened:
            names = list(opened.keys())
            assert sum(opened.get_tensor(n).nbytes for n in names) <= 60_000
            assert not held.keys() & set(names)
            held |= dict.fromkeys(names, shard.name)
    assert held == where
    assert made.weight_bytes == 4 * original.num_parameters()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out).eval()), logits(original))


def test_half_precision_stays(original, written, tmp_path):
    save = written(3.0, 2)
    for file in save.rglob("*.pt"):
        content = torch.load(file, weights_only=False)
        halved(content["model"])
        torch.save(content, file)
    convert(save, tmp_path / "out", num_tokens=TOKENS)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float16"
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in original.half().state_dict().items():
        assert torch.equal(converted.state_dict()[name], value), name
    original.float()


def halved(tree):
    for key, value in tree.items():
        if isinstance(value, dict):
            halved(value)
        else:
            tree[key] = value.half()


def test_the_tokenizer_comes_along_and_says_where_the_vocabulary_ends(written, tiny_gpt2_tokenizer, tmp_path):
    made = convert(written(3.0, 2), tmp_path / "out", tokenizer=tiny_gpt2_tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert made.tokenizer_files and len(loaded) == config["vocab_size"] == TOKENS
    assert config["eos_token_id"] == loaded.eos_token_id


@pytest.mark.parametrize(
    ("said", "activation"),
    [
        ({"bias_gelu_fusion": True, "openai_gelu": False}, "gelu_new"),
        ({"bias_gelu_fusion": False, "openai_gelu": True}, "gelu_new"),
        ({"bias_gelu_fusion": False, "openai_gelu": False}, "gelu"),
    ],
)
def test_the_form_of_gelu_is_the_one_that_it_was_trained_with(said, activation, written, tmp_path):
    convert(written(3.0, 1, **said), tmp_path / "out", num_tokens=TOKENS)
    assert json.loads((tmp_path / "out/config.json").read_text())["activation_function"] == activation


@pytest.mark.parametrize("layout", ["save folder", "iteration", "release", "no tracker", "single file", "flat file"])
def test_every_layout_is_found(layout, original, written, tmp_path):
    save = written(1.0, 1, iteration="release" if layout == "release" else "iter_0000500")
    checkpoint = save
    if layout == "iteration":
        checkpoint = save / "iter_0000500"
    elif layout == "no tracker":
        (save / "latest_checkpointed_iteration.txt").unlink()
    elif layout in {"single file", "flat file"}:
        checkpoint = tmp_path / "single"
        checkpoint.mkdir()
        shutil.move(save / "iter_0000500/mp_rank_00/model_optim_rng.pt", checkpoint)
        if layout == "flat file":
            checkpoint = checkpoint / "model_optim_rng.pt"
    convert(checkpoint, tmp_path / "out", num_tokens=TOKENS)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()), logits(original))


def test_the_iteration_can_be_chosen(original, written, tmp_path):
    save = written(2.0, 1)
    shutil.copytree(save / "iter_0000500", save / "iter_0000700")
    (save / "iter_0000700/mp_rank_00/model_optim_rng.pt").write_bytes(b"not this one")
    convert(save, tmp_path / "out", num_tokens=TOKENS, iteration=500)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()), logits(original))
