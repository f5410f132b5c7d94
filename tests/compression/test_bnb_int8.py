"""The int8 package: the values of LLM.int8()'s definition, bit-equal after a reload, within its bar."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.compression.bnb_int8 import BnbInt8

pytest.importorskip("bitsandbytes")
OPTION = BnbInt8(kind="bnb_int8")


@pytest.fixture(scope="module")
def package(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    OPTION.make(student, folder)
    return folder


def test_layers_hold_the_definitions_integers_and_the_rest_is_float16(student, package):
    packed, original = load_file(package / "model.safetensors"), load_file(student / "model.safetensors")
    linear = [name for name in original if "_proj.weight" in name]
    assert len(linear) == 14
    for name, weight in original.items():
        if name not in linear:
            assert torch.equal(packed[name], weight.half()), name
            continue
        weight = weight.half().double()
        scale = weight.abs().amax(dim=1, keepdim=True)
        exact = weight / scale * 127
        assert packed[name].dtype == torch.int8
        # half a step, and rounding of the quotient itself in float32
        assert (packed[name].double() - exact).abs().max() <= 0.5 + 1e-4, name


def test_a_fresh_process_gives_the_same_bits_as_quantising_here(student, package, logprobs, fresh_logprobs):
    here = logprobs(package)
    assert np.array_equal(here, logprobs(student, like=package))
    ours, theirs = fresh_logprobs(package)
    assert np.array_equal(ours, here)
    # transformers' own head multiplies in float16, ours in float32
    assert np.abs(theirs - here).max() < 0.02


def test_a_real_model_stays_within_its_bar(stories260k, tmp_path, mean_kl):
    from distill.runtime.hf import Transformers

    OPTION.make(stories260k, tmp_path)
    with Transformers(stories260k) as student, Transformers(tmp_path) as package:
        text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the sun."
        rows = [[1, *row] for row in student.tokenize([text, "Tom had a red ball and a big dog."])]
        positions = [range(len(row)) for row in rows]
        reference = student.logprobs(rows, positions)
        assert mean_kl(reference, package.logprobs(rows, positions)) < OPTION.max_kl_nats
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["llm_int8_threshold"] == 2.0


def test_every_width_is_accepted(stories260k):
    assert OPTION.refuse(json.loads((stories260k / "config.json").read_text())) is None


def test_a_family_beyond_float16_s_range_stays_finite(tmp_path, rows, logprobs, mean_kl):
    """Gemma 3's blocks add up to more than 65,504; a tiny one whose norms after each block are as large."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape["num_attention_heads"] = 2
    config = Gemma3TextConfig(vocab_size=101, num_key_value_heads=1, head_dim=32, eos_token_id=2, **shape)
    model: Any = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_feedforward_layernorm.weight.fill_(5e4)
    model.save_pretrained(tmp_path / "student")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(101)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(tmp_path / "student")
    OPTION.make(tmp_path / "student", tmp_path / "package")
    found = logprobs(tmp_path / "package")
    assert np.isfinite(found).all()
    assert mean_kl(logprobs(tmp_path / "student"), found) < 0.1
