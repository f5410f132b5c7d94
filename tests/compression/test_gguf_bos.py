"""What llama.cpp puts around text is what transformers does with the same folder, of plain text and of dialogues."""

import json

import pytest

from distill.compression._gguf_tokenizer import gguf_tokenizer
from distill.compression.gguf_q8_0 import GgufQ8_0
from tests.compression.gguf_students import CHAT_TEMPLATE, byte_level, save_model, save_tokenizer

BOS = "<|assistant|>"
WITH_BOS = "{{ bos_token }}" + CHAT_TEMPLATE


def student(folder, *, adds_bos: bool, template: str | None = None, **settings):
    """A tokenizer whose post-processor puts bos in front, or has none; with these lines in tokenizer_config.json."""
    from tokenizers import processors

    words = byte_level(None)
    if adds_bos:
        single = [f"{BOS} $A", f"{BOS} $A $B"]
        words.post_processor = processors.TemplateProcessing(*single, special_tokens=[(BOS, 1)])
    save_tokenizer(words, folder, template)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bos_token": BOS, **settings}))
    return folder


@pytest.mark.parametrize("said", [{}, {"add_bos_token": None}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_stands_before_plain_text_where_the_tokenizer_puts_it(adds_bos, said, tmp_path):
    from transformers import AutoTokenizer

    folder = student(tmp_path, adds_bos=adds_bos, **said)
    with_bos = AutoTokenizer.from_pretrained(folder)("hello")["input_ids"][0] == 1
    found = gguf_tokenizer(folder)
    assert (found.add_bos, found.add_eos) == (with_bos, False)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WITH_BOS], ids=["without", "with"])
def test_llama_cpp_s_own_chat_reads_the_prompt_that_the_student_learned(template, adds_bos, tmp_path):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from distill.encoding import encode_prompt, load_tokenizer
    from distill.runtime.llama_cpp import LlamaCpp

    save_model(tmp_path, tie_word_embeddings=True, bos_token_id=1)
    student(tmp_path, adds_bos=adds_bos, template=template)
    GgufQ8_0(kind="gguf_q8_0").make(tmp_path, tmp_path / "package")
    expected = encode_prompt(load_tokenizer(tmp_path), "hello there")
    assert (expected[0] == 1) == (template is WITH_BOS)
    with LlamaCpp(tmp_path / "package", num_threads=1) as runtime:
        written = runtime.apply_template([{"role": "user", "content": "hello there"}])
        assert runtime.tokenize([written], add_special=True)[0] == expected
