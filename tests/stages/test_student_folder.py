"""What lies beside a trained student's weights: its start's generation config, made right."""

import json
import shutil

import pytest

# of a checkpoint that many start from: Vicuna's and the first Llama 2's, temperatures without do_sample
SAMPLING = {"temperature": 0.9, "top_p": 0.6}
OTHER_END = 5


@pytest.fixture
def start(tiny_teacher, tmp_path):
    folder = tmp_path / "start"
    shutil.copytree(tiny_teacher, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": OTHER_END, **SAMPLING}))
    return folder


@pytest.fixture
def saved(start, tmp_path):
    """(the student's folder, its tokenizer)."""
    from distill.encoding import load_tokenizer
    from distill.recipe import parse
    from distill.stages.train import _save

    recipe = parse(
        {
            "name": "x",
            "data": {"kind": "word_problems", "num_rows": 20, "evaluation_rows": 2},
            "teacher": {"kind": "none"},
            "student": {"kind": "pretrained", "model": str(start)},
            "loss": {"kind": "text"},
            "adapter": {"kind": "none"},
            "training": {"batch_size": 2, "max_steps": 1},
            "evaluation": {"kind": "exact_match"},
            "tracking": {"kind": "none"},
        }
    )
    tokenizer = load_tokenizer(start)
    _save(recipe.student.build(tokenizer, 0), tokenizer, recipe, tmp_path / "student")
    return tmp_path / "student", tokenizer


def test_a_generation_config_that_transformers_does_not_save_is_kept_with_the_student_s_end(saved):
    from transformers import AutoModelForCausalLM

    folder, tokenizer = saved
    found = json.loads((folder / "generation_config.json").read_text())
    assert {name: found[name] for name in SAMPLING} == SAMPLING
    assert found["eos_token_id"] == sorted([tokenizer.eos_token_id, OTHER_END])
    assert found["pad_token_id"] == tokenizer.pad_token_id
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == found["eos_token_id"]
