"""Stored: the same weights as a whole load gives, and no file of the checkpoint stays in memory behind them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.runtime._stored import Stored


@pytest.fixture
def folder(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=100, num_attention_heads=2, **shape))
    model = model.to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return tmp_path


def test_every_weight_is_the_stored_one(folder):
    expected = {name: w for file in folder.glob("*.safetensors") for name, w in load_file(file).items()}
    found = Stored(folder)
    assert set(found) == set(expected) and len(found) == len(expected) and "lm_head.bias" not in found
    for name, weight in expected.items():
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name], weight)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells which files are mapped")
def test_no_file_stays_mapped(folder):
    found = Stored(folder)
    kept = [found[name] for name in found]
    assert kept and str(folder) not in Path("/proc/self/maps").read_text()
