"""Which folders are runs, and why some of them are left out."""

import json

import pytest

from distill.comparing.runs import find_runs
from distill.errors import RecipeError
from tests.comparing.made_runs import edit, make_run


def names(folder):
    runs, left_out = find_runs([folder])
    return [run.path.name for run in runs], {each.path.name: each.why for each in left_out}


def test_runs_are_found_at_any_depth_and_artifacts_are_none(tmp_path):
    make_run(tmp_path / "a" / "b" / "deep")
    make_run(tmp_path / "top", started="2026-11-23T00:00:00+00:00")
    # a run in a run is a rehearsal's own affair; the store's artifacts and hidden folders are no runs
    make_run(tmp_path / "top" / "rehearsal" / "inner")
    make_run(tmp_path / "store" / "scores" / "0123" / "like_a_run")
    (tmp_path / "store" / "scores" / "0123" / "manifest.json").write_text("{}")
    make_run(tmp_path / ".hidden" / "run")
    assert names(tmp_path) == (["deep", "top"], {})
    assert [run.path for run in find_runs([tmp_path / "top"])[0]] == [tmp_path / "top"]


def test_a_run_that_is_reached_on_several_ways_is_one_run(tmp_path):
    make_run(tmp_path / "outputs" / "run")
    (tmp_path / "link").symlink_to(tmp_path / "outputs" / "run")
    runs, _ = find_runs([tmp_path / "outputs" / ".." / "outputs", tmp_path / "link", tmp_path])
    assert len(runs) == 1


def test_a_link_to_a_run_below_a_named_folder_is_that_run(tmp_path):
    make_run(tmp_path / "elsewhere" / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "elsewhere" / "run")
    (tmp_path / "mine" / "circle").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "broken").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path / "mine") == (["linked"], {})


def test_rehearsals_and_unfinished_runs_are_left_out_with_a_word_why(tmp_path):
    make_run(tmp_path / "rehearsed", keys={"rehearse": True})
    (make_run(tmp_path / "stopped") / "scores.json").unlink()
    started = make_run(tmp_path / "started")
    for name in ("scores.json", "record.jsonl"):
        (started / name).unlink()
    edit(make_run(tmp_path / "scoreless") / "scores.json", lambda scores: scores.update(models=[]))
    runs, why = names(tmp_path)
    assert runs == []
    assert "tiny random models" in why["rehearsed"]
    # the sample's last stage
    last = json.loads((tmp_path / "stopped" / "record.jsonl").read_text().splitlines()[-1])["name"]
    assert why["stopped"] == f"not scored: it ended after {last}"
    assert why["started"] == "not scored: no stage of it finished"
    assert "no score" in why["scoreless"]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("scores.json", "{", "scores.json is broken: Expecting property name"),
        ("scores.json", "[" * 100_000, "scores.json is broken"),
        ("scores.json", "[1]", "scores.json is broken: it holds list, not dict"),
        ("scores.json", '{"models": 3}', "scores.json is broken: models: "),
        ("scores.json", '{"models": [7]}', "scores.json is broken: models.0: "),
        ("scores.json", '{"models": [{"name": "x", "kind": "wizard"}]}', "models.0.kind: "),
        ("scores.json", '{"models": [{"name": "x", "kind": "student", "scores": {"a": "1"}}]}', "scores.a: "),
        ("recipe.yaml", "a: [", "recipe.yaml is broken: while parsing"),
        ("recipe.yaml", "- a", "recipe.yaml is broken: it holds list, a mapping is needed"),
        ("record.jsonl", b"\xff\xfe", "record.jsonl is broken: 'utf-8' codec"),
    ],
)
def test_a_broken_file_is_named_and_its_run_left_out(tmp_path, file, text, said):
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad") / file
    bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    runs, why = names(tmp_path)
    assert runs == ["good"]
    assert said in why["bad"] and len(why["bad"]) < 400


@pytest.mark.parametrize(
    "recipe",
    [
        "defaults: 3",
        "defaults: [{override /compression: [[1], bf16]}]",
        "compression: {bf16: 3}\ndefaults: [x]",
        "loss: [1]",
    ],
)
def test_a_strange_recipe_is_compared_as_it_is(tmp_path, recipe):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text(recipe)
    assert names(tmp_path)[0] == ["run"]


def test_strange_records_do_no_harm(tmp_path):
    from distill.comparing.facts import notes
    from distill.comparing.groups import group_runs

    make_run(tmp_path / "run")
    start = {"event": "start", "time": 7, "hardware": "a Cray", "versions": ["x"], "git": {}}
    (tmp_path / "run" / "record.jsonl").write_text(f"{json.dumps(start)}\n[]\n{{\n")
    make_run(tmp_path / "other", seed=1)
    (group,) = group_runs(find_runs([tmp_path])[0])
    assert any("several machines" in note for note in notes(group))


def test_a_recipe_without_a_teacher_is_no_other_teacher(tmp_path):
    from distill.comparing.facts import notes
    from distill.comparing.groups import group_runs

    make_run(tmp_path / "taught", scores={"student": 0.6})
    make_run(tmp_path / "alone", scores={"student": 0.5}, options={"teacher": "none", "loss": "text"})
    (group,) = group_runs(find_runs([tmp_path])[0])
    assert {recipe.keys.values["teacher.kind"] for recipe in group.recipes} == {"hf", "none"}
    assert not any("KL to the teacher" in note for note in notes(group))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("outpts", r"outpts does not exist. Did you mean .*outputs\?"),
        ("nothing/like/it", "does not exist. Name the folder of a run"),
        ("outputs/run/scores.json", "is a file. Name the folder of a run, or a folder with runs below: .*outputs/run"),
        ("empty", "no run is here or below.*record.jsonl"),
    ],
)
def test_a_folder_that_is_no_run_says_what_to_type(tmp_path, typed, said):
    make_run(tmp_path / "outputs" / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=said):
        find_runs([tmp_path / typed])
