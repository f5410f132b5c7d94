"""What is known of the families agrees with what their makers published, and with transformers and llama.cpp."""

import copy
import re
from typing import cast

import pytest

from distill.family import code_llama, gemma3, llama, llama2, llama3, mistral, qwen2_5, qwen3
from distill.family.known import FAMILIES, config_of, family_of, published
from distill.family.licence import TERMS

NEWER = (llama, llama2, code_llama, llama3, qwen2_5, qwen3, mistral, gemma3)
NEWER_FAMILIES = [pytest.param(module.FAMILY, id=module.FAMILY.name) for module in NEWER]
ALL_FAMILIES = [pytest.param(family, id=family.name) for family in FAMILIES]

# `safetensors.total` of the hub's model pages, parameter counts that makers and engines print; not computed by us.
# LLaMA: arXiv:2302.13971 rounds them to 6.7, 13.0, 32.5 and 65.2 billion. The files of Llama 2 hold 64 numbers more for
# each layer, rotary frequencies that are no parameters (6,738,417,664 and so on). Qwen3-0.6B and 1.7B: as loaded, the
# tied head once.
PARAMETERS = {
    "huggyllama/llama-7b": 6_738_415_616,
    "huggyllama/llama-13b": 13_015_864_320,
    "huggyllama/llama-30b": 32_528_943_616,
    "huggyllama/llama-65b": 65_285_660_672,
    "meta-llama/Llama-2-7b-hf": 6_738_417_664 - 32 * 64,
    "meta-llama/Llama-2-13b-hf": 13_015_866_880 - 40 * 64,
    "meta-llama/Llama-2-70b-hf": 68_976_653_312 - 80 * 64,
    "codellama/CodeLlama-7b-hf": 6_738_546_688,
    "codellama/CodeLlama-13b-Instruct-hf": 13_016_028_160,
    "codellama/CodeLlama-34b-Python-hf": 33_743_970_304,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-it": 999_885_952,
}

# What no parameter count shows; from the makers' papers, model cards and answers to issues.
UNCOUNTED = [
    ("huggyllama/llama-30b", "rms_norm_eps", 1e-6),
    ("huggyllama/llama-65b", "rms_norm_eps", 1e-5),
    ("meta-llama/Llama-2-70b-chat-hf", "num_key_value_heads", 8),
    ("meta-llama/Llama-2-13b-hf", "max_position_embeddings", 4096),
    ("codellama/CodeLlama-34b-hf", "vocab_size", 32_000),
    ("codellama/CodeLlama-7b-Python-hf", "vocab_size", 32_000),
    ("codellama/CodeLlama-70b-hf", "max_position_embeddings", 16_384),
    ("codellama/CodeLlama-70b-Instruct-hf", "max_position_embeddings", 4096),
    ("meta-llama/Meta-Llama-3-70B", "max_position_embeddings", 8192),
    ("meta-llama/Llama-3.2-3B", "max_position_embeddings", 131_072),
    ("meta-llama/Llama-3.2-3B", "tie_word_embeddings", True),
    ("Qwen/Qwen2.5-3B", "vocab_size", 151_936),
    ("Qwen/Qwen2.5-7B", "vocab_size", 152_064),
    ("Qwen/Qwen2.5-0.5B", "max_position_embeddings", 32_768),
    ("Qwen/Qwen2.5-1.5B", "max_position_embeddings", 131_072),
    ("Qwen/Qwen2.5-7B", "max_position_embeddings", 131_072),
    ("Qwen/Qwen2.5-7B-Instruct", "max_position_embeddings", 32_768),
    ("Qwen/Qwen2.5-7B", "rms_norm_eps", 1e-6),
    ("Qwen/Qwen2.5-32B", "rms_norm_eps", 1e-5),
    ("Qwen/Qwen2.5-72B-Instruct", "rms_norm_eps", 1e-6),
    ("Qwen/Qwen2.5-32B-Instruct", "rms_norm_eps", 1e-6),
    ("Qwen/Qwen3-32B", "max_position_embeddings", 40_960),
    ("Qwen/Qwen3-8B-Base", "max_position_embeddings", 32_768),
    ("Qwen/Qwen3-4B", "tie_word_embeddings", True),
    ("Qwen/Qwen3-8B", "tie_word_embeddings", False),
    ("mistralai/Mistral-7B-v0.1", "sliding_window", 4096),
    ("mistralai/Mistral-7B-Instruct-v0.2", "sliding_window", None),
    ("google/gemma-3-1b-it", "sliding_window", 512),
]
ROPE_BASES = {
    "meta-llama/Llama-2-7b-hf": 1e4,
    "codellama/CodeLlama-34b-hf": 1e6,
    "codellama/CodeLlama-70b-hf": 1e6,
    "codellama/CodeLlama-70b-Python-hf": 1e4,
    "meta-llama/Meta-Llama-3-8B": 5e5,
    "meta-llama/Llama-3.3-70B-Instruct": 5e5,
    "Qwen/Qwen2.5-0.5B": 1e6,
    "Qwen/Qwen3-32B": 1e6,
    "mistralai/Mistral-7B-v0.1": 1e4,
    "mistralai/Mistral-7B-v0.3": 1e6,
    "mistralai/Mistral-Small-24B-Base-2501": 1e8,
}


def facts(model):
    known = published(model)
    assert known, model
    return known[1]


def config(model):
    return config_of(model, None, "teacher.model")


@pytest.mark.parametrize("model", PARAMETERS)
def test_parameters_are_those_that_its_makers_count(model):
    assert facts(model).parameters == PARAMETERS[model]


@pytest.mark.parametrize(("model", "key", "value"), UNCOUNTED)
def test_what_no_count_shows(model, key, value):
    assert config(model)[key] == value


@pytest.mark.parametrize("model", ROPE_BASES)
def test_rotary_base(model):
    assert config(model)["rope_parameters"]["rope_theta"] == ROPE_BASES[model]


def test_rotary_scaling_of_llama_3_1_reaches_the_positions():
    from transformers import AutoConfig

    def built(model):
        return AutoConfig.for_model(**config(model)).rope_parameters

    # arXiv:2407.21783 and the model card of 3.2: 8 and 32 times, of 8192 positions
    assert (built("meta-llama/Llama-3.1-8B")["rope_type"], built("meta-llama/Llama-3.1-8B")["factor"]) == ("llama3", 8)
    assert built("meta-llama/Llama-3.2-1B")["factor"] == 32
    assert built("meta-llama/Llama-3.2-1B")["original_max_position_embeddings"] == 8192
    assert built("meta-llama/Meta-Llama-3-8B")["rope_type"] == "default"


def test_gemma_has_five_sliding_layers_to_each_full_one():
    # arXiv:2503.19786, section 2: "starting with a local layer as the first layer"
    kinds = config("google/gemma-3-1b-it")["layer_types"]
    assert [number for number, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17, 23]
    assert len(kinds) == 26
    assert config("google/gemma-3-270m")["layer_types"].count("full_attention") == 3


def test_the_paddings_that_differ_within_a_family():
    sizes = {model: config(model)["vocab_size"] for model in ("Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-3B")}
    tokens = {facts(model).num_tokens for model in sizes}
    assert sizes["Qwen/Qwen2.5-72B"] - sizes["Qwen/Qwen2.5-3B"] == 128
    assert tokens == {151_665}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_checkpoints_are_named_once_pinned_in_full_and_have_a_known_licence(family):
    models = [p.model.lower() for other in FAMILIES for p in other.published]
    counts = [float(f"{p.parameters:.2g}") for p in family.published]
    assert counts == sorted(counts)
    for checkpoint in family.published:
        assert models.count(checkpoint.model.lower()) == 1
        assert checkpoint.revision is None or re.fullmatch("[0-9a-f]{40}", checkpoint.revision)
        assert checkpoint.licence in TERMS
        assert not checkpoint.has_chat_template or family.chat_template


def test_a_shared_model_type_is_told_apart_by_its_vocabulary():
    def of(size):
        family = family_of({"model_type": "llama", "vocab_size": size})
        return family and family.name

    assert (of(32_000), of(32_016), of(128_256)) == ("llama2", "code_llama", "llama3")
    assert of(49_152) == "llama2"  # a vocabulary of nobody here: the first that shares the type


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_what_transformers_and_llama_cpp_have_for_it(family):
    import transformers
    from gguf import MODEL_ARCH_NAMES
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type])
    assert ("sdpa" in family.attention) == bool(model_class._supports_sdpa)
    assert ("flash_attention_2" in family.attention) == bool(model_class._supports_flash_attn)
    built = AutoConfig.for_model(family.model_type, **family.published[0].config)
    assert family.tensor_parallel == bool(built.base_model_tp_plan)
    assert family.gguf is None or family.gguf in MODEL_ARCH_NAMES.values()


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_building_a_configuration_leaves_the_facts_alone(family):
    from transformers import AutoConfig

    before = [copy.deepcopy(dict(p.config)) for p in family.published]
    for checkpoint in family.published:
        built = AutoConfig.for_model(family.model_type, **checkpoint.config)
        kept = {key: getattr(built, key) for key in checkpoint.config}
        assert kept == checkpoint.config  # transformers neither drops nor corrects a key
    assert [dict(p.config) for p in family.published] == before


def tiny_model(family, checkpoint):
    """The checkpoint's configuration, `family.tiny` over it, and four heads in its own proportion."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    heads, key_value_heads = (checkpoint.config[key] for key in ("num_attention_heads", "num_key_value_heads"))
    few = 4 if key_value_heads == heads else min(2, key_value_heads)
    small = {**checkpoint.config, **family.tiny, "num_attention_heads": 4, "num_key_value_heads": few, "vocab_size": 97}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family.model_type, **small))


@pytest.mark.parametrize("family", NEWER_FAMILIES)
def test_tiny_models_run(family):
    import torch

    for checkpoint in (family.published[0], family.published[-1]):
        model = tiny_model(family, checkpoint).eval()
        ids_BT = torch.arange(48).reshape(2, 24)
        with torch.no_grad():
            logits_BTV = model(ids_BT).logits
        assert logits_BTV.shape == (2, 24, 97)
        assert torch.isfinite(logits_BTV).all()
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert tied == checkpoint.config["tie_word_embeddings"]


@pytest.mark.parametrize("family", NEWER_FAMILIES)
def test_lora_targets_are_all_linear_layers_but_the_head(family):
    import torch

    model = tiny_model(family, family.published[0])
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer is not head
    }
    assert linear == set(family.lora_targets)


def test_tiny_gemma_looks_no_further_than_its_window_in_sliding_layers():
    import torch

    model = tiny_model(gemma3.FAMILY, gemma3.FAMILY.published[0]).eval()
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    window = model.config.sliding_window
    ids_1T = torch.arange(2 * window).reshape(1, -1)
    other_1T = ids_1T.clone()
    other_1T[0, 0] = 96
    with torch.no_grad():
        one, other = (model.model(ids, output_hidden_states=True).hidden_states[1][0, -1] for ids in (ids_1T, other_1T))
        full, full_other = (model(ids).logits[0, -1] for ids in (ids_1T, other_1T))
    assert torch.equal(one, other)  # after the sliding layer the last token knows nothing of the first
    assert not torch.equal(full, full_other)


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
LLAMA_2 = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]"
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
)
# Written by hand after the makers' own descriptions of a turn: https://www.llama.com/docs/model-cards-and-prompt-formats,
# the model cards of Qwen, https://docs.mistral.ai, https://ai.google.dev/gemma/docs/core/prompt-structure
RENDERED = {
    "llama2": LLAMA_2,
    "code_llama": LLAMA_2,
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "qwen2_5": CHATML,
    "qwen3": CHATML,
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello.</s>[INST] Bye [/INST]",
    "gemma3": (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    ),
}
CHATTING = [pytest.param(module.FAMILY, id=module.FAMILY.name) for module in NEWER if module is not llama]


def rendered(family, messages, **options) -> str:
    """The conversation through transformers' own renderer, which is stricter than Jinja's."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **family.special_tokens)
    tokenizer.chat_template = family.chat_template
    return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, **options))


@pytest.mark.parametrize("family", CHATTING)
def test_a_conversation_has_the_family_s_shape(family):
    assert rendered(family, CONVERSATION, add_generation_prompt=True) == RENDERED[family.name]


@pytest.mark.parametrize("family", CHATTING)
def test_the_prompt_begins_the_whole_conversation(family):
    # what the trainer relies on to know where an answer begins
    prompt = rendered(family, CONVERSATION[:2], add_generation_prompt=True)
    whole = rendered(family, CONVERSATION[:3])
    assert whole.startswith(prompt)
    assert whole.removeprefix(prompt).strip().startswith("Hello.")


@pytest.mark.parametrize("family", CHATTING)
def test_without_a_system_message_nothing_stands_for_it(family):
    text = rendered(family, CONVERSATION[1:2], add_generation_prompt=True)
    assert text.count("Hi") == 1
    assert not re.search("system|SYS|You are", text)


@pytest.mark.parametrize("family", CHATTING)
def test_every_mark_of_a_template_is_one_token(family):
    known = {*family.special_tokens.values(), *family.added_tokens}
    marks = set(re.findall(r"<\|[a-z_]+\|>|</?(?:s|bos|start_of_turn|end_of_turn)>", RENDERED[family.name]))
    assert marks
    assert marks <= known


def test_qwen3_says_by_an_empty_thought_that_it_shall_not_think():
    said = {
        thinking: rendered(qwen3.FAMILY, CONVERSATION, add_generation_prompt=True, enable_thinking=thinking)
        for thinking in (True, False)
    }
    assert said[True] == CHATML
    assert said[False] == CHATML + "<think>\n\n</think>\n\n"
