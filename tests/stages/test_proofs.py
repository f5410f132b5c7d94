"""An architecture whose logits are not its head's of its hidden states is refused before it is asked or trained."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, FalconH1Config, Gemma2Config, GraniteConfig, LlamaConfig

from distill.errors import RecipeError
from distill.stages._proofs import require_own_logits

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
KNOWN = {
    "llama": LlamaConfig(**SIZES),
    "cohere, scaled": CohereConfig(**SIZES, logit_scale=0.0625),
    "granite, divided": GraniteConfig(**SIZES, logits_scaling=8.0),
    "gemma 2, capped": Gemma2Config(**SIZES, final_logit_softcapping=0.5),
}


def tiny(config, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_of_logits_is_theirs(name, dtype):
    model = tiny(KNOWN[name]).to(dtype).train()
    require_own_logits(model)
    assert model.training, "the mode is kept"


@pytest.mark.parametrize("name", ["cohere, scaled", "granite, divided", "gemma 2, capped"])
def test_each_of_these_would_be_another_model_without(name, monkeypatch):
    monkeypatch.setattr("distill.family.head.logit_facts", lambda config: (1.0, None))
    with pytest.raises(RecipeError, match="something to its logits"):
        require_own_logits(tiny(KNOWN[name]))


def test_a_multiplier_that_nobody_told_us_of_is_refused():
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    model = tiny(FalconH1Config(**SIZES, **mamba, lm_head_multiplier=0.4))
    with pytest.raises(RecipeError, match=r"FalconH1ForCausalLM .*\(off by 1\.5 of their norm\)\.\nTake") as error:
        require_own_logits(model)
    assert len(str(error.value).splitlines()) == 2
