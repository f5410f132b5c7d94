"""Q4_K_M: which tensor gets which type, what stands in the file, and whether llama.cpp computes what it says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.compression import _ggml
from distill.compression._gguf_mixture import Q4_K_M, Outline
from distill.compression.gguf_q4_k_m import FILE_NAME, GgufQ4KM
from distill.errors import StageFailed
from tests.compression.gguf_students import (
    BLOOM,
    GPT2,
    LLAMA,
    byte_level,
    expected_logprobs,
    mean_kl,
    random_rows,
    save_model,
    save_tokenizer,
)

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

OPTION = GgufQ4KM(kind="gguf_q4_k_m")
# rows of 256 and 512: every type that the mixture has
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64, "num_hidden_layers": 3}
WIDE_GPT2 = {**GPT2, "n_embd": 256, "n_layer": 3}
WIDE_BLOOM = {**BLOOM, "hidden_size": 256, "n_layer": 3, "n_head": 4}
# root mean square of the rounding error of Gaussian numbers, as a part of the numbers' own, with a tenth of slack
ERROR = {"F32": 0.0, "F16": 2.1e-4, "Q8_0": 0.0059, "Q6_K": 0.0195, "Q5_K": 0.040, "Q5_0": 0.047, "Q4_K": 0.079}


def types(
    num_layers: int, parts: Mapping[str, int], top: Mapping[str, int], config: Mapping[str, Any]
) -> dict[str, str]:
    """GGUF name → type, for a model of these matrices (name → length of a row)."""
    widths = {f"blk.{layer}.{part}.weight": width for layer in range(num_layers) for part, width in parts.items()}
    widths |= {f"{name}.weight": width for name, width in top.items()}
    outline = Outline.of(widths, config)
    return {name: Q4_K_M.type_of(name, (8, width), outline) for name, width in widths.items()}


def layers_with(found: Mapping[str, str], part: str, kind: str) -> list[int]:
    return sorted(int(name.split(".")[1]) for name, its in found.items() if f".{part}." in name and its == kind)


LLAMA_PARTS = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"), 4096)


def test_a_llama_of_32_layers() -> None:
    """Half of the layers have six bits where it hurts, as llama.cpp's own table of types says of Q4_K_M."""
    found = types(32, {**LLAMA_PARTS, "ffn_down": 11008}, {"token_embd": 4096, "output": 4096}, {})
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for part in ("attn_v", "ffn_down"):
        assert layers_with(found, part, "Q6_K") == more
        assert len(layers_with(found, part, "Q4_K")) == 16
    for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert len(layers_with(found, part, "Q4_K")) == 32
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q4_K", "Q6_K")


def test_qwen3_of_28_layers_is_as_in_llama_cpps_own_snapshot() -> None:
    """Source: llama.cpp, tests/snapshots/qwen3-0.6b.schema, [Q4_K_M]."""
    found = types(28, {**LLAMA_PARTS, "ffn_down": 3072}, {"token_embd": 1024, "output": 1024}, {})
    snapshot = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]
    assert layers_with(found, "attn_v", "Q6_K") == layers_with(found, "ffn_down", "Q6_K") == snapshot
    assert sum(kind == "Q6_K" for kind in found.values()) == 2 * len(snapshot) + 1


def test_gpt2_has_its_fused_projection_treated_like_values() -> None:
    parts = {"attn_qkv": 768, "attn_output": 768, "ffn_up": 768, "ffn_down": 3072}
    found = types(12, parts, {"token_embd": 768, "position_embd": 768}, {"n_embd": 768})
    assert layers_with(found, "attn_qkv", "Q6_K") == layers_with(found, "ffn_down", "Q6_K") == [0, 3, 6, 9, 10, 11]
    assert len(layers_with(found, "attn_output", "Q4_K")) == len(layers_with(found, "ffn_up", "Q4_K")) == 12
    # the embedding is the output too
    assert (found["token_embd.weight"], found["position_embd.weight"]) == ("Q6_K", "F32")


def test_bloom_of_24_layers() -> None:
    parts = {"attn_qkv": 1024, "attn_output": 1024, "ffn_up": 1024, "ffn_down": 4096}
    found = types(24, parts, {"token_embd": 1024}, {})
    more = [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    assert layers_with(found, "attn_qkv", "Q6_K") == layers_with(found, "ffn_down", "Q6_K") == more
    assert found["token_embd.weight"] == "Q6_K"


def test_values_that_eight_heads_share_have_five_bits_in_a_model_of_80_layers() -> None:
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8}
    parts = {**LLAMA_PARTS, "ffn_down": 28672}
    found = types(80, parts, {"token_embd": 8192, "output": 8192}, heads)
    assert len(layers_with(found, "attn_v", "Q6_K")) == len(layers_with(found, "attn_v", "Q5_K")) == 40
    assert len(layers_with(found, "ffn_down", "Q4_K")) == 40
    found = types(80, parts, {"token_embd": 8192, "output": 8192}, {**heads, "num_key_value_heads": 64})
    assert not layers_with(found, "attn_v", "Q5_K")


def test_rows_that_are_too_short_have_the_next_type_of_more_bits() -> None:
    """Qwen 2.5 of half a billion: 896 is three and a half blocks of 256, 4864 is nineteen."""
    parts = dict.fromkeys(LLAMA_PARTS, 896) | {"ffn_down": 4864}
    found = types(24, parts, {"token_embd": 896}, {})
    assert set(found.values()) == {"Q5_0", "Q8_0", "Q4_K", "Q6_K"}
    assert len(layers_with(found, "attn_v", "Q8_0")) == len(layers_with(found, "ffn_down", "Q6_K")) == 12
    assert len(layers_with(found, "attn_q", "Q5_0")) == 24
    assert found["token_embd.weight"] == "Q8_0"
    assert Q4_K_M.type_of("blk.0.ffn_down.weight", (64, 172), Outline(2, True, False)) == "F16"  # 5 * 32 + 12


@pytest.mark.parametrize(
    ("model", "gigabytes"),
    [("meta-llama/Llama-2-7b-hf", 4.08), ("meta-llama/Llama-3.1-8B", 4.92), ("meta-llama/Llama-3.1-70B", 42.52)],
)
def test_size_is_that_of_the_files_that_everybody_downloads(model: str, gigabytes: float) -> None:
    """As TheBloke (Llama 2) and bartowski (Llama 3.1) publish them, rounded, with tokenizers of up to 8 MB."""
    from distill.family.known import config_of

    size = OPTION.size_bytes(config_of(model, None, "student.model"))
    assert size is not None and -0.005 <= gigabytes - size / 1e9 < 0.013


def test_a_student_that_cannot_be_a_gguf_has_no_size() -> None:
    from distill.family.known import config_of

    assert OPTION.size_bytes(config_of("facebook/opt-350m", None, "student.model")) is None


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("num_rows", [1, 7])
def test_llama_cpp_rounds_as_its_python_package_does(kind: str, num_rows: int) -> None:
    """Bit for bit, in the types that numpy can round too: so the call, its order of rows and its threads are right."""
    from gguf import GGMLQuantizationType, quants

    array = np.random.default_rng(0).normal(size=(num_rows, 96)).astype(np.float32)
    assert np.array_equal(_ggml.quantise(array, kind), quants.quantize(array, GGMLQuantizationType[kind]))


@pytest.mark.parametrize(
    ("array", "importance"),
    [
        (np.zeros((2, 256), np.float64), None),
        (np.zeros((256, 2), np.float32).T, None),
        (np.zeros((2, 300), np.float32), None),
        (np.zeros((2, 256), np.float32), np.ones(255)),
    ],
    ids=["float64", "transposed", "width", "importance"],
)
def test_what_native_code_would_read_wrongly_is_refused(array: np.ndarray, importance: np.ndarray | None) -> None:
    with pytest.raises(StageFailed, match="needed: float32"):
        _ggml.quantise(array, "Q4_K", importance)


@pytest.mark.parametrize(("row_bytes", "written"), [(145, 288), (144, 287)])
def test_a_library_that_counts_bytes_otherwise_is_refused(
    row_bytes: int, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 numbers of Q4_K are 144 bytes: 128 of numbers, 12 of scales, two float16. A larger row would be overrun."""
    from types import SimpleNamespace

    def write(*_: Any) -> int:
        assert row_bytes == 144, "it was called all the same"
        return written

    other = SimpleNamespace(ggml_row_size=lambda *_: row_bytes, ggml_quantize_chunk=write)
    monkeypatch.setattr(_ggml, "_library", lambda: other)
    monkeypatch.setattr(_ggml, "num_cores", lambda: 1)
    with pytest.raises(StageFailed, match="gguf_q8_0"):
        _ggml.quantise(np.zeros((2, 256), np.float32), "Q4_K")


def made(folder: Path, **change: Any) -> tuple[Any, Path, list[str]]:
    """(model, package, what was said of it) of a random student."""
    model = save_model(folder, **change)
    save_tokenizer(byte_level(None), folder)
    return model, folder / "package", OPTION.make(folder, folder / "package")


def read(package: Path) -> dict[str, tuple[str, np.ndarray]]:
    """GGUF name → type and numbers, read and dequantised by the gguf package."""
    from gguf import GGUFReader, dequantize

    return {
        t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type).reshape(*map(int, reversed(t.shape))))
        for t in GGUFReader(package / FILE_NAME).tensors
    }


def put_back(model: Any, found: Mapping[str, tuple[str, np.ndarray]]) -> dict[str, str]:
    """Puts a file's numbers into the model that it was made of, by hand; parameter → its type in the file."""
    import torch

    names = {
        "attn_qkv": ("attn.c_attn", "self_attention.query_key_value"),
        "attn_output": ("attn.c_proj", "self_attention.dense", "self_attn.o_proj"),
        "ffn_up": ("mlp.c_fc", "mlp.dense_h_to_4h", "mlp.up_proj"),
        "ffn_down": ("mlp.c_proj", "mlp.dense_4h_to_h", "mlp.down_proj"),
        "ffn_gate": ("mlp.gate_proj",),
        **{f"attn_{letter}": (f"self_attn.{letter}_proj",) for letter in "qkv"},
        **{f"attn_{letter}_norm": (f"self_attn.{letter}_norm",) for letter in "qk"},
        "attn_norm": ("ln_1", "input_layernorm"),
        "ffn_norm": ("ln_2", "post_attention_layernorm"),
    }
    top = {
        "token_embd": ("wte", "word_embeddings", "embed_tokens"),
        "position_embd": ("wpe",),
        "token_embd_norm": ("word_embeddings_layernorm",),
        "output_norm": ("ln_f", "model.norm"),
        "output": ("lm_head",),
    }
    parameters, kinds = dict(model.named_parameters()), {}
    for name, (kind, array) in found.items():
        head, _, suffix = name.rpartition(".")
        part = head.split(".")[-1]
        endings = tuple(f"{end}.{suffix}" for end in (names.get(part) or top[part]))
        layer = head.split(".")[1] if head.startswith("blk.") else None
        (key,) = [k for k in parameters if k.endswith(endings) and (layer is None or f".{layer}." in k)]
        if model.config.model_type == "gpt2" and layer and array.ndim == 2:
            array = array.T
        if model.config.model_type == "llama" and part in ("attn_q", "attn_k"):
            # llama.cpp has the rotary pairs (0, 32), (1, 33), ... of a head of 64 side by side
            half = model.config.head_dim // 2
            pairs = [
                start + i + part for start in range(0, len(array), 2 * half) for i in range(half) for part in (0, half)
            ]
            array = array[np.argsort(pairs)]
        if model.config.model_type == "bloom" and part == "attn_qkv":
            # [query, key, value] of all heads becomes one head after the other
            heads = array.reshape(3 * model.config.n_head, -1, array.shape[-1] if array.ndim == 2 else 1)
            array = np.stack(np.split(heads, 3), axis=1).reshape(array.shape)
        with torch.no_grad():
            parameters[key].copy_(torch.from_numpy(array.copy().reshape(parameters[key].shape)))
        kinds[key] = kind
    assert kinds.keys() == parameters.keys()
    return kinds


@pytest.mark.parametrize(
    "change",
    [
        {**WIDE, "tie_word_embeddings": False},
        {**WIDE, "tie_word_embeddings": True, "num_key_value_heads": 2},
        {**WIDE, "model_type": "qwen3"},
        {**WIDE_GPT2},
        {**WIDE_BLOOM},
        {"tie_word_embeddings": False, "num_key_value_heads": 2},  # rows of 64 and 160: Q5_0 and Q8_0
    ],
    ids=["llama", "llama-tied", "qwen3", "gpt2", "bloom", "short-rows"],
)
def test_llama_cpp_computes_with_the_weights_of_the_file(change: dict[str, Any], tmp_path: Path) -> None:
    """Each weight is as near as its type allows, and llama.cpp says what transformers says with the rounded ones."""
    from distill.runtime.llama_cpp import LlamaCpp

    model, package, _ = made(tmp_path, **change)
    rows, positions = random_rows()
    before = {name: weight.detach().double().numpy().copy() for name, weight in model.named_parameters()}
    truth = expected_logprobs(model, rows, positions)
    kinds = put_back(model, read(package))
    for name, weight in model.named_parameters():
        off = np.sqrt(((weight.detach().double().numpy() - before[name]) ** 2).mean() / (before[name] ** 2).mean())
        assert ERROR[kinds[name]] * 0.75 <= off <= ERROR[kinds[name]], (name, kinds[name], off)
    rounded = expected_logprobs(model, rows, positions)
    with LlamaCpp(package, num_threads=1) as runtime:
        found = runtime.logprobs(rows, positions)
    by_rounding, by_engine = mean_kl(truth, rounded), mean_kl(rounded, found)
    print(f"mean KL of the weights' rounding {by_rounding:.2e} nats, of llama.cpp's arithmetic {by_engine:.2e}")
    assert by_engine < 0.1 * by_rounding


def test_file_says_what_it_is(tmp_path: Path) -> None:
    from gguf import GGUFReader, LlamaFileType

    _, package, said = made(tmp_path, **WIDE)
    field = GGUFReader(package / FILE_NAME).fields["general.file_type"]
    assert LlamaFileType(int(field.parts[-1][0])).name == "MOSTLY_Q4_K_M"
    assert (package / "Modelfile").read_text().startswith(f"FROM ./{FILE_NAME}\n")
    assert said == []
    sizes = OPTION.size_bytes(json.loads((tmp_path / "config.json").read_text()))
    # the rest are names, the tokenizer of 400 tokens, and the gaps between tensors
    assert sizes is not None and 0 < (package / FILE_NAME).stat().st_size - sizes < 40_000


def test_short_rows_are_told(tmp_path: Path) -> None:
    """Two layers of seven matrices, the second with more bits, and the tied embedding; only ffn_down's rows suffice."""
    _, package, (said,) = made(tmp_path / "some", intermediate_size=256, tie_word_embeddings=True)
    assert "13 of 15 matrices" in said and "Q5_0 and Q8_0" in said and "None" not in said
    found = [kind for kind, array in read(package).values() if array.ndim == 2]
    assert sorted(found) == ["Q4_K", *["Q5_0"] * 11, "Q6_K", *["Q8_0"] * 2]
    _, _, (said,) = made(tmp_path / "all", tie_word_embeddings=True)
    assert "15 of 15 matrices" in said and "None has 4 bits" in said


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q5_0"])
def test_important_columns_are_rounded_with_more_care(kind: str) -> None:
    """The error that counts, weighted by the columns' importance, falls; it is not the same file."""
    from gguf import GGMLQuantizationType, quants

    generator = np.random.default_rng(1)
    array = generator.normal(size=(32, 512)).astype(np.float32)
    importance = generator.lognormal(sigma=2.0, size=512).astype(np.float32)
    errors = [
        (importance * (quants.dequantize(made, GGMLQuantizationType[kind]) - array) ** 2).sum()
        for made in (_ggml.quantise(array, kind), _ggml.quantise(array, kind, importance))
    ]
    print(f"{kind}: {errors[1] / errors[0]:.2f} of the weighted error")
    assert errors[1] < 0.95 * errors[0]


def test_importance_belongs_to_the_layer_of_its_name(tmp_path: Path) -> None:
    """Only one layer's inputs are unlike each other: only its matrix changes, and embeddings have no say."""
    from safetensors.numpy import load_file

    made(tmp_path, **WIDE, tie_word_embeddings=True)
    weights = load_file(tmp_path / "model.safetensors")
    alike = {n.removesuffix(".weight"): np.ones(w.shape[1]) for n, w in weights.items() if "_proj" in n}
    chosen = "model.layers.1.mlp.down_proj"
    unlike = alike | {chosen: np.random.default_rng(2).lognormal(sigma=2.0, size=512)}
    found = []
    for importance in (alike, unlike):
        OPTION.make(tmp_path, tmp_path / "package", importance)
        found.append({name: array.copy() for name, (_, array) in read(tmp_path / "package").items()})
    changed = [name for name in found[0] if not np.array_equal(found[0][name], found[1][name])]
    assert changed == ["blk.1.ffn_down.weight"]


@pytest.mark.parametrize("missing", ["wheel", "function"])
def test_without_llama_cpp_it_is_refused_with_the_command(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    # a shared library of Python's own, which has no such function
    other = SimpleNamespace(origin=__import__("_ctypes").__file__)
    monkeypatch.setattr(_ggml.importlib.util, "find_spec", lambda name: None if missing == "wheel" else other)
    _ggml._library.cache_clear()
    try:
        reason = OPTION.refuse(LLAMA)
    finally:
        _ggml._library.cache_clear()
    assert reason is not None and "pip install 'distill[gguf]'" in reason and "gguf_q8_0" in reason


def test_the_student_is_refused_as_for_every_gguf() -> None:
    assert OPTION.refuse(LLAMA) is None
    assert "opt" in (OPTION.refuse({"model_type": "opt"}) or "")
    assert "80" in (OPTION.refuse({**LLAMA, "hidden_size": 80}) or "")
