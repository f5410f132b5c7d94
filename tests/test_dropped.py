"""distill/_dropped.py: pins that belong to another model, and keys that are given twice."""

from pathlib import Path

import pytest

from distill._hydra import compose, compose_sweep
from distill._own_recipe import write_recipe
from tests.conftest import ROOT

PINNED = """\
# @package _global_
defaults:
  - override /teacher: vllm
  - override /student: pretrained
teacher: {model: org/big, revision: "1111", tokenizer: org/words, tokenizer_revision: "2222"}
student: {model: org/small, revision: "3333"}
"""
ROUTED = """\
# @package _global_
defaults:
  - override /teacher: routed
teacher:
  teachers:
    maths: {kind: hf, model: org/maths, revision: "1111"}
    prose: {kind: hf, model: org/prose, revision: "2222"}
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(PINNED)
    (tmp_path / "routed.yaml").write_text(ROUTED)
    return tmp_path / "mine.yaml"


def pins(composed) -> tuple:
    teacher, student = composed.config["teacher"], composed.config["student"]
    return teacher.get("revision"), teacher.get("tokenizer_revision"), student.get("revision")


@pytest.mark.parametrize(
    ("typed", "left", "said"),
    [
        ([], ("1111", "2222", "3333"), []),
        (["teacher.model=org/other"], (None, "2222", "3333"), ["teacher.revision=1111"]),
        (["++teacher.model=org/other"], (None, "2222", "3333"), ["teacher.revision=1111"]),
        (["teacher.model=org/big"], ("1111", "2222", "3333"), []),
        (["teacher.tokenizer=org/other"], ("1111", None, "3333"), ["teacher.tokenizer_revision=2222"]),
        (["student.model=org/other"], ("1111", "2222", None), ["student.revision=3333"]),
        (["teacher.model=org/other", "teacher.revision=4444"], (4444, "2222", "3333"), []),
        # the very commit of the recipe, typed: the user says that it is the other's too
        (["teacher.model=org/other", "teacher.revision='1111'"], ("1111", "2222", "3333"), []),
        (["training.max_steps=3"], ("1111", "2222", "3333"), []),
    ],
)
def test_a_typed_model_drops_the_revision_of_the_recipes_model(typed, left, said):
    composed = compose(["recipe=mine.yaml", *typed])
    assert pins(composed) == left
    assert [line.split(" ")[0] for line in composed.dropped] == said
    for line in composed.dropped:
        assert "recipe=" in line and "org/other" in line and "revision=… gives another" in line


def test_an_option_typed_instead_of_the_recipes_is_no_reason_to_keep_its_pin():
    teacher = compose(["recipe=mine.yaml", "teacher=hf", "teacher.model=org/other"]).config["teacher"]
    assert teacher == {"kind": "hf", "model": "org/other"}


def test_shipped_recipes_too_and_each_job_of_a_sweep():
    [line] = compose(["recipe=llama65b_to_7b", "teacher.model=huggyllama/llama-30b"]).dropped
    assert "49707c5313d34d1c5a846e29cf2a2a650c22c8ee" in line and "huggyllama/llama-65b" in line
    jobs = compose_sweep(["recipe=mine.yaml", "student.model=org/small,org/other"])
    assert [pins(job)[2] for job in jobs] == ["3333", None]
    assert [len(job.dropped) for job in jobs] == [0, 1]


def test_routed_teachers_each_have_their_own():
    composed = compose(["recipe=routed.yaml", "teacher.teachers.maths.model=org/other"])
    teachers = composed.config["teacher"]["teachers"]
    assert "revision" not in teachers["maths"] and teachers["prose"]["revision"] == "2222"
    assert [line.split("=")[0] for line in composed.dropped] == ["teacher.teachers.maths.revision"]
    whole = "teacher.teachers.prose={kind: hf, model: org/other, revision: '2222'}"
    kept = compose(["recipe=routed.yaml", whole])
    assert kept.config["teacher"]["teachers"]["prose"]["revision"] == "2222" and kept.dropped == ()


def test_the_runs_own_recipe_has_no_foreign_revision(tmp_path):
    composed = compose(["recipe=mine.yaml", "teacher.model=org/other"])
    write_recipe(composed, tmp_path / "recipe.yaml")
    again = compose(["recipe=recipe.yaml"])
    assert again.config == composed.config and again.dropped == ()


def test_a_recipe_whose_own_model_only_the_command_line_gives(tmp_path):
    (tmp_path / "open.yaml").write_text(PINNED.replace("org/big", '"${who}"'))
    assert compose(["recipe=open.yaml", "who=org/big"]).dropped == ()
    assert compose(["recipe=open.yaml", "who=org/big", "seed=1"]).config["teacher"]["revision"] == "1111"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["seed=1", "seed=2"], ["seed=1 is dropped: seed=2 comes after it."]),
        (["seed=1", "++seed=2", "seed=3"], [f"seed={n} is dropped: seed=3 comes after it." for n in (1, 2)]),
        (["loss=jsd", "loss=reverse_kl"], ["loss=jsd is dropped: loss=reverse_kl comes after it."]),
        (["seed=1", "training.max_steps=1"], []),
        # mappings add up
        (["training={max_steps: 3}", "training={batch_size: 8}"], []),
    ],
)
def test_a_key_given_twice_is_said_and_the_last_one_counts(typed, said):
    composed = compose(["recipe=mine.yaml", *typed])
    assert list(composed.dropped) == said
    last = dict(text.lstrip("+").split("=") for text in typed if "{" not in text)
    if "seed" in last:
        assert composed.config["seed"] == int(last["seed"])
    if "loss" in last:
        assert composed.config["loss"]["kind"] == last["loss"]


def test_of_two_recipes_the_last_counts():
    composed = compose(["recipe=mine.yaml", "recipe=quickstart"])
    assert composed.config["name"] == "quickstart"
    [line] = composed.dropped
    assert "mine.yaml" in line and line.endswith("recipe=quickstart comes after it.")


def test_the_recipe_of_the_docs_composes_and_parses(tmp_path):
    from distill.recipe import parse

    text = (ROOT / "docs" / "recipes.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "docs.yaml").write_text(text)
    recipe = parse(compose(["recipe=docs.yaml"]).config)
    assert (recipe.name, recipe.teacher.kind, recipe.student.kind) == ("docs", "hf", "pretrained")
    assert list(recipe.compression) == ["bf16", "gguf_q8_0"]
