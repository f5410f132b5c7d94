"""Several chat templates in one tokenizer: all of them are in the packages, and the default one makes the prompts."""

import json
import shutil

import pytest

from distill.compression.bf16 import Bf16
from distill.compression.gguf_q8_0 import FILE_NAME, GgufQ8_0
from distill.encoding import load_tokenizer, template_hash

NAMED = {"tool_use": "{{ tools }}", "rag-2": "{{ documents }}"}


@pytest.fixture(params=["files", "list"])
def student(request, tiny_teacher, tmp_path):
    """With two more templates, as transformers 5 writes them and as older versions did."""
    folder = tmp_path / "student"
    shutil.copytree(tiny_teacher, folder)
    default = (folder / "chat_template.jinja").read_text()
    if request.param == "files":
        (folder / "additional_chat_templates").mkdir()
        for name, text in NAMED.items():
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
        return folder
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": n, "template": t} for n, t in {**NAMED, "default": default}.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_checkpoint_s_package_has_all_of_them(student, tiny_teacher, tmp_path):
    Bf16(kind="bf16").make(student, tmp_path / "package")
    found, plain = load_tokenizer(tmp_path / "package"), load_tokenizer(tiny_teacher)
    assert found.chat_template == {**NAMED, "default": plain.chat_template}
    # a teacher with more templates makes the same prompts, and its responses fit
    assert template_hash(found) == template_hash(plain)


def test_a_gguf_has_all_of_them_in_one_order(student, tiny_teacher, tmp_path):
    from gguf import GGUFReader

    GgufQ8_0(kind="gguf_q8_0").make(student, tmp_path)
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / FILE_NAME).fields.items()}
    assert fields["tokenizer.chat_template"] == load_tokenizer(tiny_teacher).chat_template
    assert fields["tokenizer.chat_templates"] == ["rag_2", "tool_use"]
    assert fields["tokenizer.chat_template.rag_2"] == NAMED["rag-2"]
    assert fields["tokenizer.chat_template.tool_use"] == NAMED["tool_use"]
