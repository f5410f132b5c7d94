"""What a GGUF says of itself: the recipe's name, its licences and origin, and how its answers are drawn."""

import json
import shutil

import pytest

from distill import _hydra
from distill.compression.gguf_q8_0 import FILE_NAME, GgufQ8_0
from distill.recipe import parse
from distill.stages._about import about
from distill.stages.compress import make_package, settings


def recipe(*overrides: str):
    return parse(_hydra.compose(["compression=[gguf_q8_0]", *overrides]).config)


def fields_of(folder) -> dict:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(folder / FILE_NAME).fields.items()}


def test_the_file_names_recipe_licences_and_origin(tiny_teacher, tmp_path):
    asked = recipe(
        "++name=swahili_news",
        "teacher.model=google/gemma-3-27b-it",
        "student=pretrained",
        "student.model=meta-llama/Llama-3.2-1B",
        "data=local",
        "data.path=openai/gsm8k",
        "data.response_field=answer",
    )
    make_package(asked, asked.compression["gguf_q8_0"], tiny_teacher, [], tmp_path)
    found = {n: v for n, v in fields_of(tmp_path / "package").items() if n.startswith("general.")}
    kept = {name.removeprefix("general."): value for name, value in found.items()}
    from safetensors.numpy import load_file

    size = sum(weight.size for weight in load_file(tiny_teacher / "model.safetensors").values())
    assert kept.pop("size_label") == f"{size / 1e3:.0f}K" and kept.pop("architecture") == "llama"
    for name in ("quantization_version", "file_type"):
        kept.pop(name)
    assert kept == {
        "type": "model",
        # Llama 3.2's 1.b.i: a model that is passed on begins with its name
        "name": "Llama-swahili_news",
        "license": "other",
        "license.name": "llama3.2-and-gemma",
        "license.link": "https://ai.google.dev/gemma/terms",
        "base_model.count": 1,
        "base_model.0.name": "Llama-3.2-1B",
        "base_model.0.organization": "meta-llama",
        "base_model.0.repo_url": "https://huggingface.co/meta-llama/Llama-3.2-1B",
        "dataset.count": 1,
        "dataset.0.name": "gsm8k",
        "dataset.0.organization": "openai",
        "dataset.0.repo_url": "https://huggingface.co/openai/gsm8k",
        "sampling.temp": 0.0,
    }


def test_another_name_is_another_file_and_no_other_package():
    one, two = recipe("++name=one"), recipe("++name=two")
    assert about(one).name == "one"
    assert settings(one, one.compression["gguf_q8_0"]) != settings(two, two.compression["gguf_q8_0"])
    one, two = recipe("++name=one", "compression=[bf16]"), recipe("++name=two", "compression=[bf16]")
    assert settings(one, one.compression["bf16"]) == settings(two, two.compression["bf16"])


def test_what_is_not_known_is_left_out(tiny_teacher, tmp_path):
    of_folder = recipe("++name=mine", "student=pretrained", f"student.model={tiny_teacher}")
    assert vars(about(of_folder)) == {"name": "mine", "licence": {}, "base_model": None, "dataset": None}
    llama = ("student=pretrained", "student.model=meta-llama/Llama-3.2-1B")
    rehearsed = about(recipe("++name=mine", "rehearse=true", *llama))
    assert (rehearsed.name, rehearsed.licence, rehearsed.base_model) == ("rehearsal of mine", {}, None)


@pytest.mark.parametrize(
    ("name", "student", "teacher", "said"),
    [
        ("my_model", "meta-llama/Llama-3.1-8B", "bundled:quickstart_teacher", "Llama-my_model"),
        ("llama31_70b_to_8b", "meta-llama/Llama-3.1-8B", "bundled:quickstart_teacher", "llama31_70b_to_8b"),
        # of the teacher's outputs alone
        ("my_model", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-70B-Instruct", "Llama-my_model"),
        ("llama_of_mine", "meta-llama/Meta-Llama-3-8B", "bundled:quickstart_teacher", "Llama-3-llama_of_mine"),
        ("llama3_mine", "meta-llama/Meta-Llama-3-8B", "meta-llama/Llama-3.1-70B-Instruct", "llama3_mine"),
        ("my_model", "meta-llama/Llama-2-7b-hf", "bundled:quickstart_teacher", "my_model"),
    ],
)
def test_a_name_begins_as_its_licence_asks(name, student, teacher, said):
    asked = recipe(f"++name={name}", f"teacher.model={teacher}", "student=pretrained", f"student.model={student}")
    assert about(asked).name == said


SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


@pytest.mark.parametrize(
    ("config", "temperature", "top_p"), [({}, 0.0, 0.95), ({"temperature": 0.9}, 0.0, 0.95), (SAMPLED, 0.6, 0.9)]
)
def test_llama_cpp_draws_answers_as_transformers_does(config, temperature, top_p, tiny_teacher, tmp_path):
    """Its own default is 0.8, at which no score of a run was taken."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from distill.runtime.llama_cpp import LlamaCpp

    student = tmp_path / "student"
    shutil.copytree(tiny_teacher, student)
    file = student / "generation_config.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**kept, **config}))
    GgufQ8_0(kind="gguf_q8_0").make(student, tmp_path / "package")
    assert f"PARAMETER temperature {temperature:g}\n" in (tmp_path / "package" / "Modelfile").read_text()
    with LlamaCpp(tmp_path / "package", num_threads=1) as runtime:
        default = runtime._ask("GET", "/props")["default_generation_settings"]["params"]
    assert default["temperature"] == pytest.approx(temperature) and default["top_p"] == pytest.approx(top_p)
