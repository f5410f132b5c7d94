"""Nothing is claimed that the seeds do not show."""

import itertools

import pytest

from distill.comparing.groups import group_runs
from distill.comparing.runs import find_runs
from distill.comparing.verdict import (
    best_of,
    brief,
    chance_of_separation,
    described,
    headlines,
    telling,
    to_take,
    verdicts,
)
from tests.comparing.made_runs import edit, make_run, sweep


def group_in(folder):
    (group,) = group_runs(find_runs([folder])[0])
    return group


def words(group):
    return {entry.title: word for entry, word in zip(group.entries, verdicts(group), strict=True)}


@pytest.mark.parametrize(("one", "other"), [(1, 1), (1, 3), (2, 2), (3, 3), (2, 4)])
def test_the_chance_that_equal_recipes_look_apart_is_counted_out(one, other):
    """All orders of one + other different results: in how many do the two sides not mix?"""
    orders = list(itertools.permutations(range(one + other)))
    apart = sum(max(o[:one]) < min(o[one:]) or min(o[:one]) > max(o[one:]) for o in orders)
    assert chance_of_separation(one, other) == pytest.approx(apart / len(orders))


def test_ranges_that_overlap_show_no_difference(tmp_path):
    group = group_in(sweep(tmp_path, {"jsd": {0: 0.80, 1: 0.84}, "forward_kl": {0: 0.79, 1: 0.81}}))
    assert words(group) == {"A student": "best", "B student": "overlap"}
    (said,) = headlines(group)
    assert said == (
        "A (loss.kind=jsd): the student's exact match is 82.0 % (80.0–84.0, 2 seeds), 2.0 points more than "
        "B (loss.kind=forward_kl), 80.0 % (79.0–81.0, 2 seeds). The ranges overlap: these seeds show no difference."
    )


def test_ranges_apart_come_with_how_often_chance_does_that(tmp_path):
    results = {"jsd": {0: 0.80, 1: 0.84, 2: 0.82}, "forward_kl": {0: 0.79, 1: 0.77, 2: 0.75}}
    group = group_in(sweep(tmp_path, results))
    assert words(group) == {"A student": "best", "B student": "apart"}
    # 2 of the 6! / (3! 3!) = 20 ways to mix six results
    assert headlines(group)[0].endswith(
        "The ranges do not overlap; 3 and 3 seeds of equal recipes would do that in 10 % of cases."
    )


def test_means_that_look_the_same_are_best_together_and_none_where_all_do(tmp_path):
    results = {"jsd": {0: 0.8, 1: 0.9}, "text": {0: 0.8499, 1: 0.8499}, "forward_kl": {0: 0.2, 1: 0.3}}
    assert words(group_in(sweep(tmp_path / "a", results))) == {
        "A student": "best",
        "B student": "best",
        "C student": "apart",
    }
    del results["forward_kl"]
    assert words(group_in(sweep(tmp_path / "b", results))) == {"A student": "", "B student": ""}
    make_run(tmp_path / "c", scores={"student": 0.5, "bf16": 0.5, "bnb_int8": 0.5, "gguf_q8_0": 0.1})
    assert words(group_in(tmp_path / "c")) == {"student": "", "bf16": "best", "bnb_int8": "best", "gguf_q8_0": ""}


def test_touching_ranges_overlap(tmp_path):
    assert (
        words(group_in(sweep(tmp_path, {"jsd": {0: 0.8, 1: 0.9}, "text": {0: 0.7, 1: 0.8}})))["B student"] == "overlap"
    )


def test_one_seed_on_a_side_says_nothing_of_the_spread(tmp_path):
    group = group_in(sweep(tmp_path, {"jsd": {0: 0.9}, "forward_kl": {0: 0.1, 1: 0.2}}))
    assert words(group) == {"A student": "best", "B student": "1 seed"}
    assert "With one seed on a side, nothing says how much of that is chance" in headlines(group)[0]


def test_one_recipe_is_reported_without_a_rival(tmp_path):
    group = group_in(sweep(tmp_path, {"jsd": {0: 0.5}}))
    assert headlines(group) == ["quickstart: the student's exact match is 50.0 %; one seed says nothing of the spread."]
    assert words(group) == {"student": ""}


def test_the_package_to_take_is_the_smallest_verified_one_within_a_point(tmp_path):
    # sizes in the sample: bf16 1.2 MB, bnb_nf4 763 kB, gguf_q8_0 701 kB
    for seed, (bf16, nf4, gguf) in enumerate([(0.90, 0.88, 0.86), (0.80, 0.802, 0.83)]):
        scores = {"student": 0.9, "bf16": bf16, "bnb_nf4": nf4, "gguf_q8_0": gguf}
        make_run(tmp_path / f"seed{seed}", seed=seed, scores=scores)
    # means 0.85, 0.841, 0.845
    assert to_take(group_in(tmp_path)).title == "gguf_q8_0"
    said = headlines(group_in(tmp_path))[1]
    assert "within a point of the best" in said
    assert f"{tmp_path}/seed0/packages/gguf_q8_0, the best of its seeds (0)." in said
    assert "84.5 % (83.0–86.0, 2 seeds) in 685 KiB" in said
    edit(tmp_path / "seed1" / "scores.json", lambda s: s["models"][3].update(verified=False))
    assert to_take(group_in(tmp_path)).title == "bnb_nf4"
    assert best_of(group_in(tmp_path), "package").title == "bf16"


def test_a_package_judged_in_bits_is_within_one_percent_not_a_point(tmp_path):
    run = make_run(tmp_path / "run", scores={"bf16": 0.0, "gguf_q8_0": 0.0})
    edit(run / "scores.json", lambda s: s.update(task="bits_per_byte"))
    for place, bits in enumerate((2.0, 2.019)):
        edit(run / "scores.json", lambda s, p=place, b=bits: s["models"][p]["scores"].update(bits_per_byte=b))
    (said,) = headlines(group_in(tmp_path))
    assert said.startswith("Package to take: gguf_q8_0, 2.02 in 685 KiB, the smallest verified one within one percent")


def test_an_unverified_package_is_never_the_best(tmp_path):
    make_run(tmp_path / "run", scores={"student": 0.5, "bf16": 0.4, "bnb_int8": 0.9})
    edit(tmp_path / "run" / "scores.json", lambda s: s["models"][2].update(verified=False))
    assert words(group_in(tmp_path)) == {"student": "", "bf16": "best", "bnb_int8": ""}


def test_a_package_that_nobody_verified_is_neither_best_nor_taken(tmp_path):
    make_run(tmp_path / "run", scores={"student": 0.5, "bf16": 0.4, "gguf_q8_0": 0.9})
    edit(tmp_path / "run" / "scores.json", lambda s: s["models"][2].pop("verified") and None)
    group = group_in(tmp_path)
    assert [entry.verified for entry in group.entries] == [None, True, None]
    assert (best_of(group, "package").title, to_take(group).title) == ("bf16", "bf16")


def test_the_seed_to_take_is_the_one_that_scored_best(tmp_path):
    for seed, value in enumerate((0.80, 0.84, 0.82)):
        make_run(tmp_path / f"seed{seed}", seed=seed, scores={"student": 0.9, "bf16": value})
    assert f"{tmp_path}/seed1/packages/bf16, the best of its seeds (1)." in headlines(group_in(tmp_path))[1]


def test_packages_that_are_never_right_recommend_nothing(tmp_path):
    make_run(tmp_path / "run", scores={"student": 0.0, "bf16": 0.0})
    assert len(headlines(group_in(tmp_path))) == 1


def test_long_values_are_cut_in_the_middle():
    assert brief("x" * 80) == "x" * 80
    assert brief("a" * 50 + "b" * 50) == "a" * 40 + "…" + "b" * 40


def test_recipes_that_differ_in_everything_are_told_by_name_and_by_what_their_namesakes_lack(tmp_path):
    many = {f"training.{key}": 7 for key in ("max_steps", "warmup_steps", "weight_decay", "num_train_epochs")}
    many |= {"data.num_rows": 7, "student.num_layers": 9, "student.hidden_size": 64}
    make_run(tmp_path / "a", scores={"student": 0.9})
    make_run(tmp_path / "b", scores={"student": 0.8}, keys={"name": "mine", **many})
    make_run(tmp_path / "c", scores={"student": 0.7}, keys={"name": "mine", **many, "training.max_steps": 8})
    group = group_in(tmp_path)
    assert len(group.differences) == 8
    assert telling(group) == ["name", "training.max_steps"]
    assert [described(recipe, telling(group)) for recipe in group.recipes] == [
        "name=quickstart, training.max_steps=null",
        "name=mine, training.max_steps=7",
        "name=mine, training.max_steps=8",
    ]
