"""Weights that cannot be loaded, or are not those of their config.json, are refused before anything runs."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from distill._weights_check import check_weights
from distill.errors import DataError, RecipeError
from distill.runtime._causal_lm import read_causal_lm

FIRST, SECOND = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A checkpoint of three files."""
    folder = tmp_path_factory.mktemp("sharded")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=96, num_hidden_layers=3, tie_word_embeddings=False, **shape))
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / SECOND).is_file()
    return folder


def recipe_of(teacher, student):
    return SimpleNamespace(
        teacher=SimpleNamespace(kind="hf", model=str(teacher)),
        student=SimpleNamespace(kind="pretrained", model=str(student)),
    )


def _one_layer_more(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))


def _another_width(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))


def _renamed(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        renamed = {name.replace("self_attn", "attention"): value for name, value in load_file(folder / file).items()}
        save_file(renamed, folder / file, metadata={"format": "pt"})
    index["weight_map"] = {name.replace("self_attn", "attention"): file for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _lost(folder):
    (folder / SECOND).unlink()


def _cut(folder):
    with (folder / FIRST).open("r+b") as file:
        file.truncate(1000)


def _quantised_otherwise(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_one_layer_more, r"model\.layers\.3\.\S+ is missing \(9 weights are missing"),
        (_another_width, r"mlp\.\S+ has shape \[\d+, \d+\], but config.json says \["),
        (_renamed, r"model\.layers\.0\.self_attn\.\S+ is missing \(12 weights are missing"),
        (_lost, "its weights cannot be loaded .*" + SECOND),
        (_cut, "its weights cannot be loaded .*header"),
        (_quantised_otherwise, r"its weights are quantised \(gptq\), and a student is trained from float weights"),
    ],
)
def test_a_student_that_cannot_be_loaded_is_refused(sharded, tmp_path, damage, said):
    student = shutil.copytree(sharded, tmp_path / "student")
    check_weights(recipe_of(sharded, student))
    damage(student)
    for may_be_elsewhere in (False, True):
        with pytest.raises(RecipeError, match=said) as refused:
            check_weights(recipe_of(sharded, student), may_be_elsewhere=may_be_elsewhere)
        assert str(refused.value).startswith("student.model=") and len(str(refused.value).splitlines()) <= 6


def test_a_teacher_is_held_to_the_same(sharded, tmp_path):
    teacher = shutil.copytree(sharded, tmp_path / "teacher")
    _one_layer_more(teacher)
    with pytest.raises(RecipeError, match=r"^teacher\.model=.* is missing"):
        check_weights(recipe_of(teacher, sharded))
    with pytest.raises(DataError, match="is missing"):  # wherever it is loaded
        read_causal_lm(teacher)


def test_a_configuration_without_weights_can_be_rehearsed_and_not_run(sharded, tmp_path):
    (tmp_path / "config.json").write_text((sharded / "config.json").read_text())
    check_weights(recipe_of(sharded, tmp_path), may_be_elsewhere=True)
    with pytest.raises(RecipeError, match="its weights cannot be loaded"):
        check_weights(recipe_of(sharded, tmp_path))


def test_the_check_reads_headers_alone(sharded):
    """Of 65 billion weights it would else read 130 GB."""
    model = read_causal_lm(sharded, device_map="meta")
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    whole = AutoModelForCausalLM.from_pretrained(sharded)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}
