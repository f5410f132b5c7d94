"""What is known of published checkpoints agrees with transformers, and with itself."""

import pytest

from distill.errors import RecipeError
from distill.family.known import FAMILIES, config_of, family_of, published
from distill.family.reading import read_stored

PUBLISHED = [pytest.param(f, p, id=f"{f.name}-{p.size}") for f in FAMILIES for p in f.published]


@pytest.mark.parametrize(("family", "checkpoint"), PUBLISHED)
def test_parameters_are_those_that_transformers_counts(family, checkpoint):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family.model_type, **checkpoint.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == checkpoint.parameters
    assert checkpoint.num_tokens <= config.get_text_config().vocab_size


def test_a_checkpoint_is_found_by_its_hub_id_and_its_family_by_its_config():
    family, checkpoint = published("OpenAI-community/GPT2-xl")
    assert (family.name, checkpoint.size) == ("gpt2", "1.5B")
    assert published("nobody/nothing") is None
    assert family_of({"model_type": "gpt2"}).name == "gpt2"
    assert family_of({"model_type": "mamba"}) is None


def test_weights_that_no_hub_has_are_not_looked_for_there(monkeypatch):
    for model, way in (("checkpoints/opt-175b", "on request"), ("checkpoints/megatron-gpt2-8.3b", "distill.megatron")):
        with pytest.raises(RecipeError, match=way) as refused:
            read_stored(model, None, "teacher.model")
        assert "hub gave no" not in str(refused.value) and len(str(refused.value).splitlines()) <= 6


def test_every_family_says_where_the_weights_are_that_no_hub_has():
    for family in FAMILIES:
        assert bool(family.where_weights_are) == any(not p.on_hub for p in family.published), family.name


def test_a_published_config_needs_no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert config_of("openai-community/gpt2-xl", None, "teacher.model")["n_embd"] == 1600
