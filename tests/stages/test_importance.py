"""importance_of: mean squares of inputs, against those that follow from the embeddings by hand."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill._store_writer import StoreWriter
from distill.compression._about import About
from distill.compression.gguf_q4_k_m import FILE_NAME
from distill.encoding import template_hash, tokenizer_hash
from distill.example import Example
from distill.recipe import parse
from distill.responses import Row, TeacherResponses
from distill.stages._about import about
from distill.stages._importance import importance_of
from distill.stages._rows import Said
from distill.stages.compress import VERSION, make_package, reads_responses, settings
from distill.targets.next_token import NextTokenTargets
from tests.compression.gguf_students import GPT2, byte_level, save_model, save_tokenizer
from tests.stored import HEADER

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
    decided = {"version": VERSION, "kind": "gguf_q4_k_m", "about": {**asdict(About(name="x")), "licence": {}}}
    assert settings(with_rows, asked) == {**decided, "calibration_rows": 128, "max_length": 96}
    assert settings(without, unasked) == {**decided, "calibration_rows": 0}


def said_of(student: Path, folder: Path, rows: list[list[int]]) -> Said:
    """A store of these tokens, of a teacher with the student's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    hashes = {"tokenizer_hash": tokenizer_hash(tokenizer), "template_hash": template_hash(tokenizer)}
    kind: dict[str, Any] = {"kind": "next", "vocab_size": 400, "kept": None}
    folder.mkdir()
    writer = StoreWriter(folder, replace(HEADER, num_rows=len(rows), **kind, **hashes), [range(len(rows))])
    targets = NextTokenTargets(np.log(np.array([0.25], dtype=np.float32)))
    for batch in writer.missing():
        ids = [np.array(rows[n], dtype=np.int32) for n in batch]
        writer.write([Row(n, "x", "teacher", i, len(i) - 1, targets) for n, i in zip(batch, ids, strict=True)])
    writer.finish()
    return Said([Example("a?")] * len(rows), TeacherResponses(folder))


@pytest.mark.parametrize(("num_rows", "chosen"), [(0, []), (2, [0, 2]), (128, [0, 1, 2, 3])])
def test_a_package_is_weighted_by_as_many_responses_as_were_asked_for(num_rows, chosen, tmp_path: Path) -> None:
    """Spread evenly, each whole: the file is the one that those rows' importance gives, and no other."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    student, rows = tmp_path / "student", [*ROWS, [200, 100, 300], [17, 350, 2, 90]]
    save_model(student, hidden_size=256, intermediate_size=256, num_attention_heads=4, head_dim=64, num_hidden_layers=1)
    save_tokenizer(byte_level(None), student)
    asked = recipe(calibration_rows=num_rows)
    option: Any = asked.compression["gguf_q4_k_m"]
    (tmp_path / "scratch").mkdir()
    make_package(asked, option, student, [said_of(student, tmp_path / "store", rows)], tmp_path / "scratch")
    found = (tmp_path / "scratch" / "package" / FILE_NAME).read_bytes()
    for others in ([], [0], [0, 1], [0, 2], [0, 1, 2, 3]):
        importance = importance_of(student, [rows[n] for n in others]) if others else None
        option.make(student, tmp_path / "other", importance, about=about(asked))
        assert (found == (tmp_path / "other" / FILE_NAME).read_bytes()) == (others == chosen), others
