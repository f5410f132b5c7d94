"""GGUF export: what is refused, what stands in the file, and whether llama.cpp says what transformers says."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.compression._gguf_tokenizer import PRE_TOKENIZERS, gguf_tokenizer
from distill.compression.gguf_q8_0 import FILE_NAME, GgufQ8_0
from distill.errors import StageFailed
from tests.compression.gguf_students import (
    BLOOM,
    CHAT_TEMPLATE,
    GPT2,
    LLAMA,
    SPECIALS,
    byte_level,
    expected_logprobs,
    mean_kl,
    random_rows,
    save_model,
    save_tokenizer,
    strings,
)

OPTION = GgufQ8_0(kind="gguf_q8_0")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """(folder, model, tokenizer) of a Llama with tied embeddings and the split rule of Qwen 2."""
    folder = tmp_path_factory.mktemp("student")
    model = save_model(folder, tie_word_embeddings=True)
    regex = next(rule for rule, name in PRE_TOKENIZERS.items() if name == "qwen2")
    return folder, model, save_tokenizer(byte_level(regex), folder, CHAT_TEMPLATE)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "opt"}, "opt"),
        ({"model_type": "gpt_neo"}, "gpt_neo"),
        ({"model_type": "gpt2"}, "n_embd"),
        ({**GPT2, "n_embd": 80}, "80"),
        ({**GPT2, "activation_function": "relu"}, "relu"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scales"),
        ({"model_type": "bloom"}, "n_layer"),
        ({**BLOOM, "apply_residual_connection_post_layernorm": True}, "residual"),
        ({"model_type": "mamba"}, "mamba"),
        ({"hidden_size": 80}, "80"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"head_dim": 15}, "15"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"model_type": "mistral", "sliding_window": 128}, "128"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 128}, "128"),
    ],
)
def test_refuses_before_training(change: dict[str, Any], word: str) -> None:
    reason = OPTION.refuse({**LLAMA, **change})
    assert reason is not None and word in reason


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 128},
        {"model_type": "qwen3"},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 1e4},
        {"intermediate_size": 172},
        {**GPT2},
        {**BLOOM},
    ],
)
def test_accepts(change: dict[str, Any]) -> None:
    assert OPTION.refuse({**LLAMA, **change}) is None


def test_refuses_tokenizers_that_llama_cpp_cannot_express(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    other = byte_level(r"\p{N}{1,4}|\s+|\S+")
    spaced, lower, stripping = (byte_level(None) for _ in range(3))
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    lower.normalizer = normalizers.Lowercase()
    stripping.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    bytes_only = byte_level(None)
    bytes_only.model = models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    whitespace = Tokenizer(models.BPE({"a": 0, "aa": 1}, [("a", "a")], byte_fallback=True))
    whitespace.pre_tokenizer = pre_tokenizers.Whitespace()
    cases = {r"\p{N}{1,4}": other, "add_prefix_space": spaced, "Lowercase": lower, "lstrip": stripping}
    cases |= {"no merges": bytes_only, "WordLevel": words, "Whitespace": whitespace}
    for number, (word, tokenizer) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        reason = OPTION.refuse_tokenizer(folder)
        # the found pre-tokenizer is shown as JSON, where a backslash is two
        assert reason is not None and word in reason.replace("\\\\", "\\")
    reason = OPTION.refuse_tokenizer(tmp_path)
    assert reason is not None and "tokenizer.json" in reason


def test_make_says_which_part_cannot_be_exported(student: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder = student[0]
    config = json.loads((folder / "config.json").read_text())
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 399}))
    with pytest.raises(StageFailed, match="400 tokens and the model only 399"):
        OPTION.make(tmp_path, tmp_path / "package")
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(StageFailed, match="relu"):
        OPTION.make(tmp_path, tmp_path / "package")


def test_what_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    save_model(tmp_path, tie_word_embeddings=True)
    save_tokenizer(byte_level(None), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][5] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(StageFailed, match=r"output_norm\.weight"):
        OPTION.make(tmp_path, tmp_path / "package")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_file_holds_the_weights_rounded_once(dtype: str, tmp_path: Path) -> None:
    from gguf import GGUFReader, dequantize

    model = save_model(tmp_path, dtype=dtype, tie_word_embeddings=False, intermediate_size=172, num_key_value_heads=2)
    save_tokenizer(byte_level(None), tmp_path)
    OPTION.make(tmp_path, tmp_path / "package")
    reader = GGUFReader(tmp_path / "package" / FILE_NAME)
    found = {t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    state = {name: weight.double().numpy() for name, weight in model.state_dict().items()}
    assert len(found) == len(state)
    for name, source, kind in [
        ("token_embd.weight", "model.embed_tokens.weight", "Q8_0"),
        ("output.weight", "lm_head.weight", "Q8_0"),
        ("output_norm.weight", "model.norm.weight", "F32"),
        ("blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight", "Q8_0"),
        ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight", "Q8_0"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", "F16"),  # rows of 172 = 5 * 32 + 12
    ]:
        stored, weight = found[name][1].reshape(state[source].shape), state[source]
        assert found[name][0] == kind
        if kind == "Q8_0":
            # half a step of the block's scale, which itself is a float16
            blocks = weight.reshape(-1, 32)
            step = np.repeat(np.abs(blocks).max(axis=1) / 127, 32).reshape(weight.shape)
            assert (np.abs(stored - weight) <= step * (0.5 + 127 * 2**-11) + 1e-7).all()
        else:
            assert (np.abs(stored - weight) <= np.abs(weight) * 2**-11 + 1e-7).all()
    # A query head in llama.cpp's order: rotary pairs (0, 16), (1, 17), ... stand side by side.
    query = state["model.layers.0.self_attn.q_proj.weight"]
    paired = query[[head * 32 + half * 16 + i for head in range(2) for i in range(16) for half in range(2)]]
    assert np.abs(found["blk.0.attn_q.weight"][1] - paired).max() < np.abs(query).max() / 127


def test_shards_are_read_like_one_file(tmp_path: Path) -> None:
    model = save_model(tmp_path / "one", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    tokenizer = byte_level(None)
    files = []
    for name in ("one", "many"):
        save_tokenizer(tokenizer, tmp_path / name)
        (tmp_path / name).rename(tmp_path / "student")  # the file carries the folder's name
        OPTION.make(tmp_path / "student", tmp_path / f"package_{name}")
        (tmp_path / "student").rename(tmp_path / name)
        files.append((tmp_path / f"package_{name}" / FILE_NAME).read_bytes())
    assert files[0] == files[1]


def test_special_tokens_and_template_are_stored(student: tuple[Path, Any, Any]) -> None:
    tokenizer = gguf_tokenizer(student[0], 410)
    assert tokenizer.pre == "qwen2" and tokenizer.model == "gpt2"
    assert [tokenizer.tokens[number] for number in (0, 1, 2)] == SPECIALS
    assert list(tokenizer.types[:4]) == [3, 3, 3, 1] and list(tokenizer.types[-10:]) == [5] * 10
    assert tokenizer.ids["eos"] == 2 and not tokenizer.add_bos and not tokenizer.add_eos
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("stops", "ids"),
    [([2], {"eos": 2}), ([0, 2], {"eos": 2, "eot": 0}), ([0, 1], {"eos": 0, "eot": 1}), (None, {"eos": 2})],
)
def test_end_tokens_are_those_of_the_generation_config(
    stops: list[int] | None, ids: dict[str, int], student: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):  # whose own end token is 2
        (tmp_path / name).write_bytes((student[0] / name).read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    found = gguf_tokenizer(tmp_path).ids
    assert {role: number for role, number in found.items() if role.startswith("e")} == ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1, 2, 3]}))
    assert "end tokens" in (OPTION.refuse_tokenizer(tmp_path) or "")


def test_modelfile_translates_the_chat_template(student: tuple[Path, Any, Any], tmp_path: Path) -> None:
    OPTION.make(student[0], tmp_path)
    lines = (tmp_path / "Modelfile").read_text().splitlines()
    assert lines == [
        f"FROM ./{FILE_NAME}",
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "user" }}<|user|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "system" }}<|system|>{{ .Content }}<|end|>{{ end }}{{ end }}<|assistant|>"""',
        'PARAMETER stop "<|end|>"',
        "PARAMETER temperature 0",
    ]


def test_modelfile_leaves_out_a_template_that_depends_on_more(student: tuple[Path, Any, Any], tmp_path: Path) -> None:
    for file in student[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ loop.index }}: {{ m['content'] }}\n{% endfor %}"
    )
    OPTION.make(tmp_path, tmp_path / "package")
    assert "\nTEMPLATE" not in (tmp_path / "package" / "Modelfile").read_text()


# llama.cpp itself

needs_llama_cpp = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"
)


@needs_llama_cpp
@pytest.mark.parametrize(
    "change",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 64},
        {**GPT2},
        {**GPT2, "tie_word_embeddings": False, "n_inner": 96},
        {**BLOOM},
    ],
    ids=lambda change: "-".join(str(change.get(key, "")) for key in ("model_type", "tie_word_embeddings")),
)
def test_unrounded_file_is_the_same_function(change: dict[str, Any], tmp_path: Path) -> None:
    """With float32 instead of Q8_0 only llama.cpp's float16 cache is left between the two."""
    from distill.compression._gguf import write_gguf
    from distill.compression._gguf_mixture import Mixture
    from distill.runtime.llama_cpp import LlamaCpp

    model = save_model(tmp_path, **change)
    save_tokenizer(byte_level(None), tmp_path)
    write_gguf(tmp_path, tmp_path / "float32.gguf", Mixture("ALL_F32", lambda name, outline: "F32"))
    rows, positions = random_rows()
    truth = expected_logprobs(model, rows, positions)
    with LlamaCpp(tmp_path / "float32.gguf", num_threads=1) as runtime:
        found = runtime.logprobs(rows, positions)
    assert truth.std() > 0.5
    assert mean_kl(truth, found) < 2e-5 and np.abs(truth - found).max() < 0.05


@needs_llama_cpp
@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "gpt-2", "bloom", "ByteLevel"])
def test_token_ids_are_equal(pre: str, tmp_path: Path) -> None:
    from distill.runtime.llama_cpp import LlamaCpp

    save_model(tmp_path)
    regex = next((rule for rule, name in PRE_TOKENIZERS.items() if name == pre), None)
    tokenizer = save_tokenizer(byte_level(regex), tmp_path)
    OPTION.make(tmp_path, tmp_path / "package")
    texts = strings(400, seed=2)
    with LlamaCpp(tmp_path / "package", num_threads=1) as runtime:
        found = runtime.tokenize(texts)
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [text for text, a, b in zip(texts, found, expected, strict=True) if a != b] == []


@needs_llama_cpp
@pytest.mark.parametrize(("scheme", "template"), [("prepend", None), ("always", None), ("first", CHAT_TEMPLATE)])
def test_sentencepiece_style_token_ids_are_equal(scheme: str, template: str | None, tmp_path: Path) -> None:
    """The kinds that llama.cpp can follow: exactly, for texts that start with a letter, for chat prompts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    from distill.runtime.llama_cpp import LlamaCpp

    words = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=140, show_progress=False)
    words.train_from_iterator([text for text in strings(300, seed=1, specials=False) if text.isascii()], trainer)
    trained = json.loads(words.to_str())["model"]
    pieces = ["<unk>", *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(trained["vocab"], key=trained["vocab"].get)[:140]
    merges = [tuple(pair) for pair in trained["merges"] if "".join(pair) in pieces]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.add_special_tokens(["<unk>", *SPECIALS])
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    saved = save_tokenizer(tokenizer, tmp_path, template)
    save_model(tmp_path)
    OPTION.make(tmp_path, tmp_path / "package")
    texts = strings(300, seed=2, specials=scheme != "always")
    if scheme == "always":
        texts = [text.lstrip(" ") for text in texts]
    if template is not None:
        texts = [f"<|user|>{text}<|end|><|assistant|>" for text in texts]
    with LlamaCpp(tmp_path / "package", num_threads=1) as runtime:
        found = runtime.tokenize(texts)
    expected = saved(texts, add_special_tokens=False)["input_ids"]
    assert [text for text, a, b in zip(texts, found, expected, strict=True) if a != b] == []


@needs_llama_cpp
@pytest.mark.parametrize("tied", [True, False])
def test_package_is_as_far_from_the_student_as_its_rounding(tied: bool, tmp_path: Path) -> None:
    """llama.cpp rounds activations to 8 bits too, so its error may be a few times that of the rounded weights alone."""
    import torch

    from distill.runtime.llama_cpp import LlamaCpp

    model = save_model(tmp_path, tie_word_embeddings=tied)
    save_tokenizer(byte_level(None), tmp_path)
    OPTION.make(tmp_path, tmp_path / "package")
    rows, positions = random_rows()
    truth = expected_logprobs(model, rows, positions)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                blocks = weight.double().reshape(-1, 32)
                step = blocks.abs().amax(dim=1, keepdim=True) / 127
                weight.copy_(((blocks / step).round() * step).reshape(weight.shape))
    rounded = expected_logprobs(model, rows, positions)
    with LlamaCpp(tmp_path / "package", num_threads=1) as runtime:
        found = runtime.logprobs(rows, positions)
    print(f"mean KL {mean_kl(truth, found):.2e} nats, of the weights alone {mean_kl(truth, rounded):.2e}, tied={tied}")
    assert 0 < mean_kl(truth, found) < 5 * mean_kl(truth, rounded)


@needs_llama_cpp
def test_real_checkpoint(tmp_path: Path) -> None:
    """stories260k: ids of 500 real stories, and the mean KL on what it was trained for."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from distill.runtime.llama_cpp import LlamaCpp

    shared = Path(os.environ.get("DISTILL_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()
    folder = shared / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (DISTILL_SHARED_DATA names another place)")
    OPTION.make(folder, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    lines = (shared / "tinystories" / "stories.jsonl").read_text("utf-8").splitlines()
    texts = [next(iter(json.loads(line).values())) for line in lines]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [[1, *row[:200]] for row in ids[:6]]
    positions = [list(range(0, len(row) - 1, 4)) for row in rows]
    truth = expected_logprobs(model, rows, positions)
    with LlamaCpp(tmp_path, num_threads=1) as runtime:
        assert runtime.tokenize(texts) == ids
        found = runtime.logprobs(rows, positions)
    print(f"mean KL {mean_kl(truth, found):.2e} nats over {len(found)} positions")
    assert mean_kl(truth, found) < OPTION.max_kl_nats
    assert (truth.argmax(axis=1) == found.argmax(axis=1)).mean() > 0.97
