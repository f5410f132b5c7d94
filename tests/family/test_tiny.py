"""A tiny model is its family's in every switch; a tiny tokenizer is of its kind, and loads without a network."""

import json

import pytest

from distill.errors import RecipeError
from distill.family.facts import Family
from distill.family.known import FAMILIES
from distill.family.tiny import tiny_config
from distill.family.tiny_tokenizer import VOCAB_SIZE, train_like
from tests.small_models import random_model

TEXTS = [
    "Ada has 7 boxes with 4 pens in each and 15 loose pens.\nHow many pens is that in all?",
    "Straße, naïve, 北京, ሰላም ለዓለም",
    'def area(r):\n    return 3.14159 * r ** 2  # "circle"',
]
PUBLISHED = [pytest.param(f, p, id=f"{f.name}-{p.size}") for f in FAMILIES for p in f.published]

SENTENCEPIECE = Family(
    name="any",
    title="Any",
    model_type="llama",
    published=(),
    lora_targets=(),
    attention=(),
    tokenizer="sentencepiece_bpe",
    special_tokens={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    added_tokens=("<mark>",),
    gguf="llama",
    vllm=True,
    tensor_parallel=True,
    source="",
)


def logits_of(model):
    import torch

    with torch.no_grad():
        return model(torch.arange(3, 35)[None]).logits


@pytest.mark.parametrize(("family", "checkpoint"), PUBLISHED)
def test_a_tiny_model_of_each_published_checkpoint_computes_and_differs_in_size_alone(family, checkpoint):
    published = {"model_type": family.model_type, **checkpoint.config}
    tiny = tiny_config(published, 520)
    model = random_model(tiny)
    logits_BTV = logits_of(model)
    assert logits_BTV.shape == (1, 32, 520) and logits_BTV.isfinite().all()
    assert model.num_parameters() < 3e6
    # flat logits would make every wrong export look right
    assert 0.2 < float(logits_BTV.std()) < 5
    sizes = {
        *("n_embd", "n_layer", "n_head", "n_inner", "hidden_size", "num_hidden_layers", "num_layers", "num_heads"),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "ffn_dim", "vocab_size"),
        *("word_embed_proj_dim", "layer_types", "attention_types", "attention_layers", "initializer_range", "init_std"),
        *("dtype", "torch_dtype"),
    }
    differ = {key for key, value in checkpoint.config.items() if tiny.get(key) != value}
    # a family may set more on purpose, such as a window that short texts reach
    assert {key for key in differ if not key.endswith("token_id")} <= sizes | set(family.tiny)
    assert tiny.get("tie_word_embeddings") == checkpoint.config.get("tie_word_embeddings")


@pytest.mark.parametrize(("heads", "key_value_heads", "tiny_ones"), [(64, 8, 2), (64, 1, 1), (32, 32, 4), (28, 4, 2)])
def test_grouped_multi_query_and_full_heads_stay_apart(heads, key_value_heads, tiny_ones):
    config = {
        "model_type": "llama",
        "hidden_size": 128 * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": 32000,
    }
    attention = random_model(tiny_config(config, 300)).model.layers[0].self_attn
    assert attention.q_proj.out_features == 64
    assert attention.k_proj.out_features == 16 * tiny_ones


def test_a_head_size_of_its_own_stays_one():
    qwen3 = {"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "head_dim": 128, "vocab_size": 9}
    tiny = tiny_config(qwen3, 300)
    assert tiny["head_dim"] * tiny["num_attention_heads"] != tiny["hidden_size"]
    llama = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 32000}
    tiny = tiny_config(llama, 300)
    assert tiny["head_dim"] * tiny["num_attention_heads"] == tiny["hidden_size"]


def test_rotary_positions_windows_and_positions_stay():
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = {"model_type": "llama", "rope_parameters": rope, "max_position_embeddings": 131072, "vocab_size": 128256}
    tiny = tiny_config(config, 300)
    assert tiny["rope_parameters"] == rope and tiny["max_position_embeddings"] == 131072
    mistral = tiny_config({"model_type": "mistral", "sliding_window": 4096, "vocab_size": 32000}, 300)
    assert mistral["sliding_window"] == 4096


def test_every_kind_of_layer_occurs():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 12, "layer_types": kinds * 2, "vocab_size": 262144}
    tiny = tiny_config(gemma, 300)
    assert tiny["layer_types"] == ["sliding_attention", "full_attention"] and tiny["num_hidden_layers"] == 2
    assert tiny_config(gemma, 300, num_layers=4)["layer_types"][4:] == []
    assert len(tiny_config(gemma, 300, num_layers=4)["layer_types"]) == 4
    neo = {"model_type": "gpt_neo", "num_layers": 24, "attention_types": [[["global", "local"], 12]]}
    assert random_model(tiny_config(neo, 300)).config.attention_layers == ["global", "local"]


def test_embeddings_narrower_than_the_layers_stay_narrower():
    opt = {"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512, "do_layer_norm_before": False}
    model = random_model(tiny_config(opt, 300))
    decoder = model.model.decoder
    assert decoder.embed_tokens.embedding_dim < decoder.project_in.out_features
    # what nf4 needs of every linear layer on a CPU
    assert all(m.in_features % 64 == 0 for m in model.modules() if hasattr(m, "in_features"))


@pytest.mark.parametrize(
    "model_type",
    ["gpt_neox", "falcon", "phi3", "granite", "cohere", "gemma2", "olmo2", "stablelm", "starcoder2", "mixtral", "glm4"],
)
def test_architectures_that_are_not_among_our_families_are_made_tiny_too(model_type):
    from transformers import AutoConfig

    # transformers' defaults for it are its first published size
    full = AutoConfig.for_model(model_type).to_dict()
    model = random_model(tiny_config({**full, "model_type": model_type}, 300))
    assert logits_of(model).shape == (1, 32, 300)
    assert model.num_parameters() < 3e6


@pytest.mark.parametrize("model_type", ["brand_new", None, "vit", "t5"])
def test_an_architecture_that_transformers_cannot_load_is_named_with_what_works(model_type):
    with pytest.raises(RecipeError) as refused:
        tiny_config({"model_type": model_type}, 300)
    message = str(refused.value)
    assert repr(model_type) in message and "gpt2" in message and "bf16" in message
    assert len(message.splitlines()) <= 6


@pytest.mark.parametrize("family", [*FAMILIES, SENTENCEPIECE], ids=lambda family: family.name)
def test_a_tiny_tokenizer_says_any_text_loads_offline_and_stays_the_same(family, tmp_path):
    from transformers import AutoTokenizer

    made = train_like(family, TEXTS, chat=True)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) <= VOCAB_SIZE
    for text in (*TEXTS, "x  y \n\t z", "𝄞 unseen signs ﷽ 한국어"):
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert loaded.decode(ids) == text
        assert ids == made(text, add_special_tokens=False)["input_ids"]
    for role, token in family.special_tokens.items():
        assert getattr(loaded, role) == token
    for token in family.added_tokens:
        assert loaded(token, add_special_tokens=False)["input_ids"][-1:] == [loaded.convert_tokens_to_ids(token)]
    assert (loaded.chat_template == family.chat_template) or not family.chat_template


@pytest.mark.parametrize("family", [*FAMILIES, SENTENCEPIECE], ids=lambda family: family.name)
def test_llama_cpp_takes_the_tiny_tokenizer_where_it_takes_the_family(family, tmp_path):
    from distill.compression._gguf_tokenizer import gguf_tokenizer

    train_like(family, TEXTS).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family.model_type}))
    expected = {"llama3": "llama-bpe", "qwen2_5": "qwen2", "qwen3": "qwen2", "bloom": "bloom"}
    got = gguf_tokenizer(tmp_path)
    sentencepiece = family.tokenizer == "sentencepiece_bpe"
    assert got.pre == expected.get(family.name, "default" if sentencepiece else "gpt-2")
    assert got.model == ("llama" if sentencepiece else "gpt2")
    assert got.add_bos == (sentencepiece or family.name in {"opt", "llama3"})


def test_a_sentencepiece_tokenizer_falls_back_to_bytes_and_puts_its_prefix_and_bos():
    tokenizer = train_like(SENTENCEPIECE, TEXTS)
    ids = tokenizer("pens")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(ids)[1].startswith("▁")
    unseen = tokenizer.tokenize("한")
    assert unseen[-3:] == [f"<0x{byte:02X}>" for byte in "한".encode()]
