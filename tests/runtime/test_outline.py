"""An outline is the model that is read, but for its storage: names, shapes, what is tied, attention."""

import json

import pytest
import torch

from distill.family.known import FAMILIES
from distill.family.tiny import tiny_config
from distill.runtime._causal_lm import read_causal_lm
from distill.runtime._outline import outline_of
from tests.small_models import random_model


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_of_each_family(tmp_path, family):
    config = {"model_type": family.model_type, **family.published[-1].config}
    model = random_model(tiny_config(config, 97)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    compare(outline_of(tmp_path), read_causal_lm(tmp_path, dtype="auto"), torch.bfloat16)
    compare(outline_of(tmp_path, dtype=torch.float32), read_causal_lm(tmp_path, dtype=torch.float32), torch.float32)


def test_of_the_language_model_in_a_checkpoint_that_reads_images(tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 97, "num_key_value_heads": 1, "head_dim": 32}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gemma3"
    outline = outline_of(tmp_path)
    assert type(outline).__name__ == "Gemma3ForCausalLM"
    compare(outline, read_causal_lm(tmp_path, dtype="auto"), torch.float32)


def compare(outline, read, dtype):
    assert type(outline) is type(read) and not outline.training and not read.training
    assert outline.config.to_dict() == {**read.config.to_dict(), "_name_or_path": outline.config._name_or_path}
    assert outline.config._attn_implementation == read.config._attn_implementation
    assert described(outline) == described(read)
    assert all(tensor.is_meta for tensor in [*outline.parameters(), *outline.buffers()])
    assert {weight.dtype for weight in outline.parameters()} == {dtype}
    # what is neither a weight nor a buffer would stay without storage
    assert not [name for module in outline.modules() for name, value in vars(module).items() if torch.is_tensor(value)]


def described(model):
    first = {}
    return [
        (name, first.setdefault(id(tensor), name), tuple(tensor.shape), tensor.dtype)
        for kind in (model.named_parameters, model.named_buffers)
        for name, tensor in kind(remove_duplicate=False)
    ]
