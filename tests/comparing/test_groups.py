"""Runs become recipes, recipes become groups; expected means and ranges by hand."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.comparing.as_json import as_json
from distill.comparing.groups import group_runs, letter
from distill.comparing.runs import find_runs
from tests.comparing.made_runs import edit, make_run, sweep


def groups_in(*folders):
    return group_runs(find_runs(list(folders))[0])


def spread(entry, name="exact_match"):
    found = entry.score(name)
    return pytest.approx((found.mean, found.low, found.high)), found.num_seeds


def test_seeds_of_one_recipe_are_one_line_with_mean_and_range(tmp_path):
    sweep(tmp_path, {"jsd": {0: 0.5, 1: 0.9, 5: 0.7}, "forward_kl": {0: 0.9, 1: 0.7}})
    (group,) = groups_in(tmp_path)
    assert group.differences == ("loss.kind",)
    assert [(r.letter, r.keys.values["loss.kind"], r.seeds) for r in group.recipes] == [
        ("A", "forward_kl", [0, 1]),
        ("B", "jsd", [0, 1, 5]),
    ]
    assert [spread(recipe.student) for recipe in group.recipes] == [((0.8, 0.7, 0.9), 2), ((0.7, 0.5, 0.9), 3)]


def test_the_best_mean_comes_first_and_lower_is_better_where_it_is(tmp_path):
    sweep(tmp_path, {"jsd": {0: 0.5}, "forward_kl": {0: 0.4}})
    assert [r.keys.values["loss.kind"] for r in groups_in(tmp_path)[0].recipes] == ["jsd", "forward_kl"]
    for run in tmp_path.iterdir():
        edit(run / "scores.json", lambda scores: scores.update(task="kl_to_teacher_nats"))
    edit(tmp_path / "jsd_0" / "scores.json", lambda s: s["models"][0]["scores"].update(kl_to_teacher_nats=9.0))
    (group,) = groups_in(tmp_path)
    assert group.task == "kl_to_teacher_nats"
    assert [r.keys.values["loss.kind"] for r in group.recipes] == ["forward_kl", "jsd"]


def test_the_same_seed_again_is_no_other_seed_and_the_newest_counts(tmp_path):
    make_run(tmp_path / "b_old", scores={"student": 0.1, "bf16": 0.2}, started="2026-11-22T12:00:00+02:00")
    # an hour later, though its text sorts before
    make_run(tmp_path / "a_new", scores={"student": 0.5}, started="2026-11-22T11:00:00+00:00")
    (group,) = groups_in(tmp_path)
    assert {entry.name: spread(entry) for entry in group.entries} == {
        "student": ((0.5, 0.5, 0.5), 1),
        "bf16": ((0.2, 0.2, 0.2), 1),  # the newer run made none
    }
    assert group.outdated == ()
    make_run(tmp_path / "newest", scores={"student": 0.6, "bf16": 0.7}, started="2026-11-22T11:00:01+00:00")
    (group,) = groups_in(tmp_path)
    assert [(old.path.name, new.path.name) for old, new in group.outdated] == [("b_old", "newest"), ("a_new", "newest")]


def test_a_run_whose_baseline_stands_in_the_table_still_counts(tmp_path):
    make_run(tmp_path / "old", scores={"baseline_text": 0.3, "student": 0.5})
    make_run(tmp_path / "new", scores={"student": 0.5}, started="2026-11-23T00:00:00+00:00")
    (group,) = groups_in(tmp_path)
    assert [(entry.title, entry.made[0][0].path.name) for entry in group.entries] == [
        ("baseline_text", "old"),
        ("student", "new"),
    ]
    assert group.outdated == ()


def test_an_adapter_is_as_large_as_what_it_needs(tmp_path):
    run = make_run(tmp_path / "0", scores={"student": 0.5, "bf16": 0.5})
    edit(run / "scores.json", lambda s: s["models"][-1].update(name="lora", bytes=60_000, base_bytes=2_000_000))
    (group,) = groups_in(tmp_path)
    assert {entry.name: entry.bytes.mean for entry in group.entries}["lora"] == 2_060_000


def test_a_sweep_over_compressions_is_one_student_with_all_its_packages(tmp_path):
    make_run(tmp_path / "0", scores={"student": 0.5, "bf16": 0.4}, options={"compression": ["bf16"]})
    make_run(tmp_path / "1", scores={"student": 0.5, "bnb_int8": 0.3}, options={"compression": ["bnb_int8"]})
    (group,) = groups_in(tmp_path)
    assert len(group.recipes) == 1
    assert [entry.title for entry in group.entries] == ["student", "bf16", "bnb_int8"]


def test_packages_of_one_name_and_several_options_say_so(tmp_path):
    for rank in (8, 16):
        scores = {"student": 0.5, "bnb_nf4_lora": rank / 100}
        make_run(tmp_path / str(rank), scores=scores, keys={"compression.bnb_nf4_lora.rank": rank})
    (group,) = groups_in(tmp_path)
    assert {entry.title: spread(entry) for entry in group.entries if entry.kind == "package"} == {
        "bnb_nf4_lora rank=8": ((0.08, 0.08, 0.08), 1),
        "bnb_nf4_lora rank=16": ((0.16, 0.16, 0.16), 1),
    }


def test_a_package_that_may_differ_more_from_its_student_is_the_same_package(tmp_path):
    for seed in (0, 1):
        limit = {"compression.bnb_nf4_lora.max_kl_nats": 0.1 + seed}
        make_run(tmp_path / str(seed), seed=seed, scores={"student": 0.5, "bnb_nf4_lora": 0.4}, keys=limit)
    (group,) = groups_in(tmp_path)
    assert [(e.title, spread(e)[1]) for e in group.entries] == [("student", 2), ("bnb_nf4_lora", 2)]


def test_teacher_and_baselines_stand_once_where_all_share_them(tmp_path):
    scores = {"teacher": 0.9, "baseline_text": 0.3, "student": 0.5}
    for loss, seed in (("jsd", 0), ("jsd", 1), ("forward_kl", 0), ("forward_kl", 1)):
        own = {**scores, "baseline_text": 0.3 + seed / 10}
        make_run(tmp_path / f"{loss}{seed}", seed=seed, scores=own, options={"loss": loss})
    (group,) = groups_in(tmp_path)
    assert [(e.title, spread(e)) for e in group.shared] == [
        ("teacher", ((0.9, 0.9, 0.9), 1)),
        ("baseline_text", ((0.35, 0.3, 0.4), 2)),
    ]
    make_run(tmp_path / "other", scores={**scores, "baseline_text": 0.1}, keys={"training.learning_rate": 1.0})
    (group,) = groups_in(tmp_path)
    assert [e.title for e in group.shared] == ["teacher", "A, B baseline_text", "C baseline_text"]


def test_what_was_judged_on_other_rows_is_another_group(tmp_path):
    make_run(tmp_path / "a", scores={"student": 0.5}, rows="aa")
    make_run(tmp_path / "b", scores={"student": 0.6}, rows="bb")
    make_run(tmp_path / "c", scores={"student": 0.7}, rows="bb", seed=1)
    groups = groups_in(tmp_path)
    assert [[run.path.name for recipe in group.recipes for run in recipe.runs] for group in groups] == [
        ["b", "c"],
        ["a"],
    ]


def test_a_run_without_the_hash_of_its_rows_takes_it_from_runs_of_the_same_keys(tmp_path):
    make_run(tmp_path / "old", scores={"student": 0.5}, rows=None)
    make_run(tmp_path / "again", scores={"student": 0.5}, rows="aa", started="2026-11-23T00:00:00+00:00")
    make_run(tmp_path / "other", scores={"student": 0.5}, rows=None, keys={"data.evaluation_rows": 7})
    groups = groups_in(tmp_path)
    assert [(len(group.recipes[0].runs), group.judged_on.values["rows"]) for group in groups] == [
        (2, "aa"),
        (1, "not recorded"),
    ]
    # two hashes of the same keys: the files changed between the runs, and nobody knows which the old run read
    make_run(tmp_path / "changed", scores={"student": 0.5}, rows="bb")
    assert sorted(str(group.judged_on.values["rows"]) for group in groups_in(tmp_path)) == [
        "aa", "bb", "not recorded", "not recorded",
    ]  # fmt: skip


def test_a_teachers_own_recipe_comes_last_and_does_not_compete(tmp_path):
    make_run(
        tmp_path / "math_teacher" / "day1", scores={"student": 0.99, "bf16": 0.98}, keys={"student.hidden_size": 256}
    )
    taught = {"teacher.model": "outputs/math_teacher/day1/packages/bf16"}
    make_run(tmp_path / "math" / "day2", scores={"student": 0.5, "bf16": 0.4}, keys=taught)
    (group,) = groups_in(tmp_path)
    assert [(recipe.seeds, recipe.teaches) for recipe in group.recipes] == [([0], ()), ([0], ("A",))]
    assert [entry.title for entry in group.competing] == ["A student", "A bf16"]


def test_a_package_is_verified_when_it_was_with_every_seed(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), seed=seed, scores={"student": 0.5, "bf16": 0.5, "bnb_int8": 0.5})
    edit(tmp_path / "1" / "scores.json", lambda s: s["models"][2].update(verified=False))
    (group,) = groups_in(tmp_path)
    assert [(e.name, e.verified) for e in group.entries] == [("student", None), ("bf16", True), ("bnb_int8", False)]


def test_letters_go_on_after_z():
    assert [letter(place) for place in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    draw = random.Random(0)
    for number in range(14):
        make_run(
            folder / f"run{number}",
            seed=draw.choice([0, 1]),
            scores={"teacher": 0.9, "student": draw.choice([0.5, 0.6]), "bf16": 0.5},
            options={"loss": draw.choice(["jsd", "forward_kl"])},
            rows=draw.choice(["aa", "bb"]),
        )
    return folder


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(14)), again=st.lists(st.integers(0, 13), max_size=5))
def test_the_order_of_arguments_and_naming_a_run_twice_change_nothing(many, order, again):
    chosen = [many / f"run{number}" for number in [*order, *again]]
    assert as_json(*found(chosen)) == as_json(*found([many]))


def found(folders):
    runs, left_out = find_runs(folders)
    return group_runs(runs), left_out


def test_every_run_that_counts_is_in_exactly_one_recipe(many):
    runs = [run["runs"] for group in json.loads(as_json(*found([many])))["groups"] for run in group["recipes"]]
    assert sorted(path for each in runs for path in each) == sorted(str(path) for path in many.iterdir())
