"""importance_of: mean squares of inputs, against those that follow from the embeddings by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.recipe import parse
from distill.stages._importance import importance_of
from distill.stages.compress import reads_responses, settings
from tests.compression.gguf_students import GPT2, byte_level, save_model, save_tokenizer

ROWS = [[3, 9, 27], [81, 7, 21, 63, 5, 11, 13]]


def normed(model: Any, kind: str) -> np.ndarray:
    """What the first block's attention reads of all tokens of ROWS, in float64: `[10, 64]`."""
    tokens = [token for row in ROWS for token in row]
    get = {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}
    if kind == "llama":
        x = get["model.embed_tokens.weight"][tokens]
        return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * get["model.layers.0.input_layernorm.weight"]
    positions = [position for row in ROWS for position in range(len(row))]
    x = get["transformer.wte.weight"][tokens] + get["transformer.wpe.weight"][positions]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return x * get["transformer.h.0.ln_1.weight"] + get["transformer.h.0.ln_1.bias"]


@pytest.mark.parametrize(
    ("kind", "change", "first", "num_layers"),
    [("llama", {}, "model.layers.0.self_attn.k_proj", 14), ("gpt2", GPT2, "transformer.h.0.attn.c_attn", 8)],
)
def test_every_token_counts_once(kind: str, change: dict, first: str, num_layers: int, tmp_path: Path) -> None:
    model = save_model(tmp_path, **change)
    save_tokenizer(byte_level(None), tmp_path)
    found = importance_of(tmp_path, ROWS)
    np.testing.assert_allclose(found[first], (normed(model, kind) ** 2).mean(0), rtol=1e-5)
    # all linear layers in the two blocks, without the head
    assert len(found) == num_layers and not any("head" in name for name in found)
    assert all(values.dtype == np.float32 and (values > 0).all() for values in found.values())


def recipe(**changed: Any) -> Any:
    return parse(
        {
            "name": "x",
            "data": {"kind": "word_problems"},
            "teacher": {"kind": "hf", "model": "t"},
            "student": {"kind": "scratch"},
            "loss": {"kind": "forward_kl"},
            "adapter": {"kind": "none"},
            "training": {"max_length": 96},
            "evaluation": {"kind": "exact_match"},
            "tracking": {"kind": "none"},
            "compression": {"gguf_q4_k_m": {"kind": "gguf_q4_k_m", **changed}, "gguf_q8_0": {"kind": "gguf_q8_0"}},
        }
    )


def test_responses_are_read_only_where_rows_are_asked_for() -> None:
    with_rows, without = recipe(), recipe(calibration_rows=0)
    asked, unasked = with_rows.compression["gguf_q4_k_m"], without.compression["gguf_q4_k_m"]
    assert reads_responses(asked) and not reads_responses(unasked)
    assert not reads_responses(with_rows.compression["gguf_q8_0"])
    # what is cut off a response is not counted
    assert settings(with_rows, asked) == {
        "version": 1,
        "kind": "gguf_q4_k_m",
        "calibration_rows": 128,
        "max_length": 96,
    }
    assert settings(without, unasked) == {"version": 1, "kind": "gguf_q4_k_m", "calibration_rows": 0}
