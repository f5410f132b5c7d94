"""Exact merges of adapters trained on quantised weights, and adapters that start at the quantisation error."""

import numpy as np
import pytest
import torch

from distill.errors import DistillError

pytest.importorskip("bitsandbytes")
DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def student(request, tmp_path_factory):
    """Folder of a random model whose widths are multiples of 64; GPT-2 has transposed layers and biases."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shapes = {
        "llama": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
        },
        "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, **dict.fromkeys(DROPOUTS, 0.0)},
    }
    config = AutoConfig.for_model(request.param, vocab_size=101, **shapes[request.param])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder


TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, 101, (4, 24)))
TARGETS = {"llama": "all-linear", "gpt2": ["c_attn", "c_proj", "c_fc"]}


def lora_on(student, how, rank, **more):
    from peft import LoraConfig, get_peft_model

    from distill.runtime.hf import load_quantised

    model = load_quantised(student, how)
    targets = TARGETS[model.config.model_type]
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets, **more)).eval()


def kl_to_student(student, model):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        p = AutoModelForCausalLM.from_pretrained(student)(TOKENS).logits.double().log_softmax(-1)
        q = model(TOKENS).logits.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_dequantised_merge_is_the_trained_function_and_can_be_saved(student, how, tmp_path):
    from transformers import AutoModelForCausalLM

    from distill.runtime.bnb import dequantised_merge

    model = lora_on(student, how, 4, use_rslora=True, lora_alpha=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        # In training int8 layers multiply with their dequantised weight; in eval mode they round activations as well.
        trained = model.train()(TOKENS).logits
        merged = dequantised_merge(model)
        assert (merged(TOKENS).logits - trained).abs().max() < 1e-4 < 0.1 < trained.std()
        merged.save_pretrained(tmp_path)
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(reloaded(TOKENS).logits, merged(TOKENS).logits)
    assert not hasattr(reloaded.config, "quantization_config")
    assert all(parameter.dtype == torch.float32 for parameter in reloaded.parameters())


def test_residual_lora_starts_nearer_to_the_student(student):
    from safetensors.torch import load_file

    from distill.runtime.bnb import dequantised_weight, residual_lora_init

    state = load_file(student / "model.safetensors")
    divergence = []
    for rank in (4, 16, 64):
        model = lora_on(student, "nf4", rank, lora_alpha=7)
        plain = kl_to_student(student, model)
        assert residual_lora_init(model, state) >= 8
        divergence.append(kl_to_student(student, model))
    assert plain > divergence[0] > divergence[1] > divergence[2]
    # rank 64 of matrices with a side of 64: nothing is left of the error
    assert divergence[2] < 1e-6 < 1e-4 < plain

    model = lora_on(student, "nf4", 4, lora_alpha=7)
    residual_lora_init(model, state)
    name, layer = next((n, m) for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A"))
    weight = state[f"{name}.weight"].double()
    weight = weight if weight.shape[0] == layer.out_features else weight.T
    residual = weight - dequantised_weight(layer.get_base_layer()).double()
    left = residual - layer.get_delta_weight("default").detach().double()
    best = torch.linalg.svdvals(residual)[4:].square().sum().sqrt()
    assert float(left.norm()) == pytest.approx(float(best), rel=1e-5)


def test_another_models_weights_are_refused(student):
    from distill.runtime.bnb import residual_lora_init

    with pytest.raises(DistillError, match="not the same model"):
        residual_lora_init(lora_on(student, "nf4", 4), {})
