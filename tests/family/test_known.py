"""What is known of published checkpoints agrees with transformers, and with itself."""

import pytest

from distill.errors import RecipeError
from distill.family.known import FAMILIES, config_of, family_of, published
from distill.family.reading import read_known, read_stored

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


ALIASES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "GPT2-XL": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
    "bigscience/bloom-6b3": "bigscience/bloom-7b1",
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "EleutherAI/gpt-neo-125M": "EleutherAI/gpt-neo-125m",
}


@pytest.mark.parametrize(("typed", "model"), ALIASES.items())
def test_an_older_id_is_the_checkpoint_that_the_hub_sends_it_to(typed, model, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert published(typed)[1].model == model
    assert config_of(typed, None, "teacher.model") == config_of(model, None, "teacher.model")


def test_no_id_is_two_checkpoints():
    ids = [name.lower() for f in FAMILIES for p in f.published for name in (p.model, *p.aliases)]
    assert len(ids) == len(set(ids))


def test_an_older_id_is_planned_and_judged_like_the_checkpoint():
    from distill import _hydra
    from distill._licences import verdict
    from distill.planning import plan
    from distill.recipe import parse

    typed = ["recipe=gpt2xl_to_gpt2", "teacher.revision=null", "student.revision=null"]
    old = parse(_hydra.compose([*typed, "teacher.model=gpt2-xl", "student.model=distilgpt2"]).config)
    new = parse(_hydra.compose([*typed, "student.model=distilbert/distilgpt2"]).config)
    assert verdict(old).level == verdict(new).level == "ok"
    assert [stage.seconds for stage in plan(old).stages] == [stage.seconds for stage in plan(new).stages]


@pytest.mark.parametrize(
    ("typed", "sizes", "meant"),
    [
        ("meta-llama/Llama-2-8b-hf", "Llama 2 was published in 7B, 13B, 70B;", "meta-llama/Llama-2-7b-hf"),
        ("google/gemma-3-7b-it", "Gemma 3 was published in 270M, 1B, 4B, 12B, 27B;", "google/gemma-3-4b-it"),
        ("gpt2-xxl", "GPT-2 was published in 82M, 117M, 345M, 774M, 1.5B;", "openai-community/gpt2-xl"),
        ("opt-125m", "OPT was published in 125M,", "facebook/opt-125m"),
    ],
)
def test_a_size_that_does_not_exist_is_told_those_that_do_before_all_else(typed, sizes, meant, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for read in (read_stored, read_known):
        with pytest.raises(RecipeError) as refused:
            read(typed, None, "teacher.model")
        first, *rest = str(refused.value).splitlines()
        assert first.startswith(f"teacher.model={typed}: {sizes}") and meant in first.partition("did you mean")[2]
        assert 1 <= len(rest) <= 5 and "the hub gave no config.json" in rest[0]


def test_nothing_is_guessed_of_a_name_like_no_other(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RecipeError) as refused:
        read_known("nobody/anything", None, "teacher.model")
    assert "did you mean" not in str(refused.value)


def test_weights_that_no_hub_has_are_not_looked_for_there():
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
