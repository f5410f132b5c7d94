"""What a GGUF's card says of commands and memory: programs that exist, and the bytes that llama.cpp itself takes."""

import re
import shutil

import pytest

from distill.compression.gguf_q8_0 import FILE_NAME, GgufQ8_0
from distill.runtime._gguf_head import GgufHead
from distill.stages._card_gguf import how_to_run, key_value_bytes
from tests.compression.gguf_students import BLOOM, GPT2, byte_level, save_model, save_tokenizer


@pytest.fixture
def package(tiny_teacher, tmp_path):
    GgufQ8_0(kind="gguf_q8_0").make(tiny_teacher, tmp_path)
    return tmp_path


def test_the_head_reads_what_gguf_s_own_reader_reads(package):
    from gguf import GGUFReader

    head, fields = GgufHead(package / FILE_NAME), GGUFReader(package / FILE_NAME).fields
    for key in ("llama.block_count", "llama.context_length", "tokenizer.ggml.eos_token_id"):
        assert head.has(key) and head.number(key) == fields[key].contents()
    for key in ("general.architecture", "general.name", "tokenizer.ggml.pre"):
        assert head.text(key) == fields[key].contents()
    assert not head.has("general.nam") and head.number("general.nam") is None and head.text("llama") is None
    assert head.number("general.name") is None


def test_a_chat_model_s_commands(package):
    said = how_to_run(package, FILE_NAME, ends="\\n")
    lines = said["shell"].splitlines()
    # the tiny teacher was trained for fewer than 2,048 tokens
    context = GgufHead(package / FILE_NAME).number("llama.context_length")
    assert context and context < 2048
    assert lines[0] == f"llama-cli -m {FILE_NAME} -c {context} --temp 0"
    assert lines[1].startswith(f"llama-server -m {FILE_NAME} -c {context} -np 1 --cache-ram 0 ")
    assert lines[2] == "ollama create my-model -f Modelfile && ollama run my-model"
    assert "handle_chat_completions" in said["code"] and f"With a context of {context} tokens" in said["memory"]


def test_without_a_template_a_prompt_ends_as_in_training(tiny_teacher, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(tiny_teacher, student)
    (student / "chat_template.jinja").unlink()
    GgufQ8_0(kind="gguf_q8_0").make(student, tmp_path / "package")
    said = how_to_run(tmp_path / "package", FILE_NAME, ends="\\n")
    # llama-cli would put a template of its own around it
    assert "llama-cli" not in said["shell"] and "llama-completion -m model-q8_0.gguf" in said["shell"]
    assert '-no-cnv -n 64 -p "...\\n"' in said["shell"] and '"prompt": "...\\n"' in said["code"]


@pytest.mark.parametrize(
    "change", [{"num_key_value_heads": 1}, {"model_type": "qwen3", "head_dim": 64}, {**GPT2}, {**BLOOM}]
)
def test_keys_and_values_take_what_llama_cpp_takes_for_them(change, tmp_path):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from distill.runtime.llama_cpp import LlamaCpp

    save_model(tmp_path, **change)
    save_tokenizer(byte_level(None), tmp_path)
    GgufQ8_0(kind="gguf_q8_0").make(tmp_path, tmp_path / "package")
    with LlamaCpp(tmp_path / "package", num_threads=1, context=256, num_slots=4) as runtime:
        runtime._log.seek(0)
        sizes = re.findall(r"KV buffer size =\s*([\d.]+) MiB", runtime._log.read())
    taken = sum(map(float, sizes)) * 2**20
    each = key_value_bytes(GgufHead(tmp_path / "package" / FILE_NAME))
    assert sizes and each and taken == pytest.approx(each * 256 * 4, rel=0.02)
