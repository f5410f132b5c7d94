"""Parameters by their kind, keys and values, and FLOPs, against what one computes by hand."""

from typing import Any

import pytest

from distill.errors import RecipeError
from distill.family.known import FAMILIES, config_of, published
from distill.planning.model import model_of


def known(name):
    _, facts = published(name)
    return model_of(name, config_of(name, None, "teacher.model"), facts.stored_dtype, on_disk=False)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_published_size_has_the_parameters_that_its_family_says(family):
    for facts in family.published:
        model = known(facts.model)
        assert model.parameters == facts.parameters
        assert model.tied == facts.config.get("tie_word_embeddings", True)
        assert model.embedding + model.head + model.blocks == model.parameters


def test_llama_65b_is_131_gigabytes_of_16_bits():
    model = known("huggyllama/llama-65b")
    # 80 blocks of four square projections, three of the inner width and two norms; embeddings, head, norm
    block = 4 * 8192 * 8192 + 3 * 8192 * 22_016 + 2 * 8192
    assert model.parameters == 80 * block + 2 * 32_000 * 8192 + 8192
    assert model.stored_bytes == 2 * 65_285_660_672
    assert round(model.stored_bytes / 1e9, 2) == 130.57
    assert model.linear == 80 * (block - 2 * 8192)
    assert model.largest_block == block
    # a LoRA of rank 1 has inputs + outputs of each layer
    assert model.linear_sizes == 80 * (4 * 2 * 8192 + 3 * (8192 + 22_016))


def test_keys_and_values_of_full_and_grouped_heads():
    assert known("huggyllama/llama-65b").kv_bytes(1) == 2 * 80 * 64 * 128 * 2
    assert known("meta-llama/Llama-3.1-70B").kv_bytes(1000) == 1000 * 2 * 80 * 8 * 128 * 2
    assert known("openai-community/gpt2").kv_bytes(10, 4) == 10 * 2 * 12 * 768 * 4


def test_a_sliding_window_bounds_keys_and_values():
    model = known("google/gemma-3-1b-pt")  # 26 layers, every sixth sees everything, one head of 256
    assert model.windows.count(None) == 4
    assert model.kv_bytes(10_000) == 2 * (4 * 10_000 + 22 * 512) * 256 * 2


def test_flops_are_two_for_each_multiplied_parameter_and_the_attention():
    model = known("huggyllama/llama-7b")
    multiplied = 6_738_415_616 - 32_000 * 4096  # embeddings are looked up
    assert model.flops_per_token(0) == 2 * multiplied
    assert model.flops_per_token(512) == 2 * multiplied + 4 * 32 * 512 * 4096
    tied = known("openai-community/gpt2")
    positions = 1024 * 768
    # the tied embedding is multiplied as the head; positions are added, which we count as if multiplied
    assert tied.flops_per_token(0) == 2 * 124_439_808
    assert positions / 124_439_808 < 0.01


def test_a_config_of_nothing_is_refused():
    with pytest.raises(RecipeError, match="no causal language model"):
        model_of("mine", {"model_type": "no-such-type"}, "float32", on_disk=True)


def test_a_window_without_kinds_of_layers_is_that_of_all_of_them():
    mistral = known("mistralai/Mistral-7B-v0.1")
    assert set(mistral.windows) == {4096}
    assert mistral.kv_bytes(32_768) == 2 * 32 * 4096 * 8 * 128 * 2
    # GPT-Neo's local layers mask what they do not see, and transformers keeps it
    assert set(known("EleutherAI/gpt-neo-125m").windows) == {None}


def test_transformers_cache_keeps_as_many_tokens_as_are_planned():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shared = {"hidden_size": 16, "vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0}
    grouped = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, "num_hidden_layers": 2}
    local = {"window_size": 8, "attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 2}
    for config in (
        AutoConfig.for_model("mistral", sliding_window=8, **grouped, **shared),
        AutoConfig.for_model("gpt_neo", **local, **shared),
    ):
        cache = AutoModelForCausalLM.from_config(config)(torch.zeros(1, 20, dtype=torch.long)).past_key_values
        held = sum(2 * layer.keys.numel() for layer in cache.layers)
        planned = model_of("tiny", config.to_dict(), "float32", on_disk=True).kv_bytes(20, 1)
        # a window keeps one token less between two steps
        assert 0.85 * planned <= held <= planned


def test_a_gguf_is_the_sum_of_its_tensors_in_whole_blocks():
    from distill.planning.package_stages import package_bytes
    from distill.recipe import options_of

    anything: Any = None  # only an adapter's package depends on the recipe

    def planned(name, student):
        return package_bytes(options_of("compression")[name](kind=name), known(student), anything)

    size = {name: planned(name, "openai-community/gpt2") for name in ("gguf_q8_0", "gguf_q4_k_m")}
    # twelve blocks of 768 x (2304 + 768 + 2 x 3072), the tied embedding; positions, biases and norms in float32
    block, embedding = 768 * 9216, 50_257 * 768
    rest = 4 * (1024 * 768 + 12 * (2304 + 768 + 3072 + 768 + 4 * 768) + 2 * 768)
    assert size["gguf_q8_0"] == (12 * block + embedding) * 34 / 32 + rest
    # six of twelve layers have 210 bytes for 256 numbers of attn_qkv and ffn_down; the other matrices 144
    more = 6 * 768 * (2304 + 3072)
    assert size["gguf_q4_k_m"] == ((more + embedding) * 210 + (12 * block - more) * 144) / 256 + rest
    # no such file can be made of it; a plan needs a figure all the same
    assert planned("gguf_q8_0", "facebook/opt-350m") == 2 * known("facebook/opt-350m").parameters
