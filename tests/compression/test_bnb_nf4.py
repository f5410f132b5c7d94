"""The nf4 package: the values of the NormalFloat definition, bit-equal after a reload although an eval forward ran."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.compression.bnb_nf4 import BnbNf4

bitsandbytes = pytest.importorskip("bitsandbytes")
OPTION = BnbNf4(kind="bnb_nf4")

# Dettmers et al. 2023, appendix E.
NEGATIVE = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635)
NEAR_ZERO = (-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725)
POSITIVE = (0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
NF4 = torch.tensor([*NEGATIVE, *NEAR_ZERO, *POSITIVE], dtype=torch.float64)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "double_quant"])
def package(request, student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nf4")
    BnbNf4(kind="bnb_nf4", double_quant=request.param).make(student, folder)
    return folder


def nearest_nf4(weight):
    """float64: every block of 64 along a row as its largest magnitude times the nearest of the sixteen values."""
    blocks = weight.double().reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    return (NF4[(blocks / scale).unsqueeze(-1).sub(NF4).abs().argmin(dim=-1)] * scale).reshape(weight.shape)


def test_weights_are_those_of_the_definition(student, tmp_path):
    from distill.runtime.bnb import dequantised_weight
    from distill.runtime.hf import Transformers

    OPTION.make(student, tmp_path)
    original = load_file(student / "model.safetensors")
    with Transformers(tmp_path) as package:
        layers = {n: m for n, m in package.model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
        assert len(layers) == 14
        for name, layer in layers.items():
            truth = nearest_nf4(original[f"{name}.weight"])
            assert (dequantised_weight(layer).double() - truth).abs().max() < 1e-6, name
        assert package.model.get_output_embeddings().weight.dtype == torch.bfloat16


def test_a_fresh_process_gives_the_same_bits_as_quantising_here(student, package, logprobs, fresh_logprobs):
    here = logprobs(package)
    assert np.array_equal(here, logprobs(student, like=package))
    ours, theirs = fresh_logprobs(package)
    assert np.array_equal(ours, here)
    # transformers alone multiplies the head in bfloat16, and on some CPUs the packed layers as well
    assert np.abs(theirs - here).mean() < 0.05


def test_bytes_and_divergence(student, package, logprobs, mean_kl):
    # random weights lose more than trained ones, for which the option's own bar is
    assert 1e-4 < mean_kl(logprobs(student), logprobs(package)) < 0.5
    assert (package / "model.safetensors").stat().st_size < 0.35 * (student / "model.safetensors").stat().st_size


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA quantises any width")
def test_widths_that_the_cpu_kernel_gets_wrong_are_refused(student, stories260k):
    assert OPTION.refuse(json.loads((student / "config.json").read_text())) is None
    reason = OPTION.refuse(json.loads((stories260k / "config.json").read_text()))
    assert "172" in reason and "down_proj" in reason and "multiple of 64" in reason
    gpt2 = {"model_type": "gpt2", "n_embd": 96, "n_head": 4, "n_layer": 1, "vocab_size": 50}
    assert "96" in OPTION.refuse(gpt2) and OPTION.refuse(gpt2 | {"n_embd": 128}) is None
