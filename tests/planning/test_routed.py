"""Plans of several teachers: each asks its share of the rows, and what is to change stands under its own key."""

import json
import shlex

import pytest

from tests.planning.test_plan import plan, recipe_of, stage

ROWS = 4000
RECIPE = """\
# @package _global_
defaults:
  - override /data: local
  - override /teacher: {teacher}
  - override /student: pretrained
data: {{path: rows.jsonl{field}}}
teacher: {body}
student: {{model: Qwen/Qwen2.5-0.5B-Instruct}}
"""
BIG = "model: Qwen/Qwen2.5-14B-Instruct, dtype: bfloat16"


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """(file of two teachers, file of the first of them alone) for the same rows, half of them for each."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{n} + 1", "response": f"{n + 1}", "domain": "ab"[n % 2]} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = f"{{teachers: {{a: {{kind: hf, {BIG}}}, b: {{kind: hf, {BIG}}}}}}}"
    texts = {
        "both.yaml": RECIPE.format(teacher="routed", field=", teacher_field: domain", body=both),
        "one.yaml": RECIPE.format(teacher="hf", field="", body=f"{{{BIG}}}"),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return [f"recipe={name}" for name in texts]


def test_several_teachers_share_the_rows(recipes):
    both, one = (plan(recipe_of(recipe), "1xh100-80gb") for recipe in recipes)
    alone = stage(one, "teach")
    for name in ("teach a", "teach b"):
        assert stage(both, name).memory.total == alone.memory.total
        assert stage(both, name).tokens == alone.tokens / 2
        assert stage(both, name).memory.moment == "writing answers", "room for max_new_tokens is taken at once"
        assert stage(both, name).flops == pytest.approx(alone.flops / 2)
    assert "teach: the rows are taken to be divided evenly among 2 teachers." in both.assumptions
    assert both.store_bytes == one.store_bytes


def test_a_change_is_typed_under_the_teachers_own_key_and_helps(recipes):
    first = stage(plan(recipe_of(recipes[0]), "2xrtx4090-24gb"), "teach a")
    assert not first.fits and first.change.overrides == "teacher.teachers.a.device_map=auto"
    changed = plan(recipe_of(recipes[0], *shlex.split(first.change.overrides)), "2xrtx4090-24gb")
    assert stage(changed, "teach a").fits and not stage(changed, "teach b").fits
