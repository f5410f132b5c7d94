"""Which keys of a recipe set runs apart."""

from dataclasses import asdict

import pytest

from distill.comparing.judged_on import SHARED_SOURCE, TRAINING_ROWS, judged_on
from distill.comparing.recipe_keys import (
    NOT_THE_STUDENTS,
    NOT_THE_TEACHERS,
    Keys,
    differing,
    keys_of,
    students_keys,
)
from distill.recipe import GROUPS, Recipe, fields_of, options_of, parse
from distill.stages import train


def keys(loss=None, **more):
    return keys_of({"name": "x", "seed": 0, "loss": loss or {"kind": "forward_kl"}, **more})


def test_a_default_that_is_written_out_is_no_difference():
    silent, said = keys(training={}), keys(training={"learning_rate": 0.001, "packing": False, "num_train_epochs": 3})
    assert silent.values["training.learning_rate"] == 1e-3
    assert differing([silent, said]) == []
    assert silent.identity == said.identity, "3 and 3.0 epochs are the same"


def test_a_sweep_over_losses_differs_in_the_loss_alone():
    jsd = keys({"kind": "jsd"})
    assert "loss.beta" in jsd.values and "loss.beta" not in keys().values
    assert differing([keys(), jsd, keys({"kind": "reverse_kl"})]) == ["loss.kind"]
    # what an option has for itself counts once somebody chose it
    assert differing([keys(), keys({"kind": "jsd", "beta": 0.9})]) == ["loss.beta", "loss.kind"]
    assert differing([jsd, keys({"kind": "jsd", "beta": 0.9})]) == ["loss.beta"]


def test_what_this_version_does_not_know_is_compared_as_it_is_written():
    old, new = keys({"kind": "forgotten", "strength": 3}), keys({"kind": "forgotten", "strength": 4})
    assert differing([old, new]) == ["loss.strength"]
    assert differing([keys(loss="text"), keys(loss=None)]) == ["loss", "loss.kind"]
    assert differing([Keys({"a": 1}, {}), Keys({}, {})]) == ["a"]


def test_a_students_keys_are_without_the_seed_and_without_what_is_made_of_it():
    one = keys(seed=1, compression={"bf16": {"kind": "bf16"}}, until="train", evaluation={"kind": "exact_match"})
    other = keys(seed=2, compression={}, baselines=["baseline_text"], tracking={"kind": "wandb", "project": "p"})
    assert students_keys(one).identity == students_keys(other).identity
    assert students_keys(keys(training={"learning_rate": 0.1})).identity != students_keys(keys()).identity
    assert students_keys(keys(data={"kind": "local", "rows": 5})).identity != students_keys(keys()).identity


def test_the_names_of_keys_are_names_that_recipes_have():
    data = {name for kind in options_of("data") for name in fields_of("data", kind)}
    assert {*TRAINING_ROWS, *SHARED_SOURCE} <= data
    for name in NOT_THE_STUDENTS:
        group, _, key = name.partition(".")
        assert group in Recipe.__dataclass_fields__
        assert not key or key in (data if group == "data" else keys_of({}).below("training.").values)
    assert set(GROUPS) <= set(Recipe.__dataclass_fields__)


HF = {"kind": "hf", "model": "org/teacher"}
SERVER = {"kind": "server", "base_url": "http://localhost:1/v1", "model": "m", "tokenizer": "org/teacher"}
VLLM = {"kind": "vllm", "model": "org/teacher"}


def recipe_of(teacher=HF, loss="forward_kl", **more):
    body = {"name": "x", "data": {"kind": "word_problems"}, "teacher": teacher, "loss": {"kind": loss}}
    body |= {
        "student": {"kind": "scratch"},
        "adapter": {"kind": "none"},
        "compression": {},
        "tracking": {"kind": "none"},
    }
    return body | {"evaluation": {"kind": "exact_match"}} | more


def test_what_the_stages_leave_out_of_their_fingerprints_sets_no_recipe_apart():
    recipe = parse(recipe_of())
    of_training = set(asdict(recipe.training)) - set(train.settings(recipe, "student")["training"])
    assert "sharding" in of_training
    assert {f"training.{name}" for name in of_training} <= set(NOT_THE_STUDENTS)
    for teacher in (SERVER, VLLM):
        option = parse(recipe_of(teacher)).teacher
        # the files behind these count, wherever they lie; targets are compared by their kind
        of_teacher = set(asdict(option)) - set(option.decides("top_k")) - {"tokenizer", "targets"}
        assert "requests_per_minute" in of_teacher
        assert of_teacher <= set(NOT_THE_TEACHERS)


@pytest.mark.parametrize("loss", ["forward_kl", "jsd", "text"])
@pytest.mark.parametrize("teacher", [HF, SERVER, {**HF, "live": True}, {**HF, "targets": "top_k"}])
def test_targets_count_by_the_kind_that_is_stored(teacher, loss):
    """Where a recipe has the kind that `Recipe.target_kind` says, writing that kind out is no difference."""
    kind = parse(recipe_of(teacher, loss)).target_kind

    def identity(**more):
        return students_keys(keys_of(recipe_of({**teacher, **more}, loss))).identity

    if kind is not None:
        assert identity() == identity(targets=kind)
        assert identity() != identity(targets="dense")
    assert (identity() == identity(top_k=7)) == (kind != "top_k")
    if teacher["kind"] == "hf":
        assert (identity() == identity(draws=7)) == (kind != "sampled")
    assert identity() == identity(batch_size=3) != identity(temperature=1.0)


def recipe_of_two(hf, server, loss="forward_kl"):
    return recipe_of({"kind": "routed", "teachers": {"a": {**HF, **hf}, "b": {**SERVER, **server}}}, loss)


def test_the_pace_of_one_of_several_teachers_sets_no_recipe_apart():
    def identity(hf, server):
        return students_keys(keys_of(recipe_of_two(hf, server))).identity

    assert identity({}, {}) == identity({"batch_size": 3}, {"concurrency": 1}) == identity({"targets": "top_k"}, {})
    assert identity({}, {}) != identity({"temperature": 1.0}, {})


def test_of_several_teachers_what_one_of_them_was_asked_for_is_the_difference():
    plain, next_alone = (students_keys(keys_of(recipe_of_two({}, server))) for server in ({}, {"targets": "next"}))
    assert differing([plain, next_alone]) == ["teacher.teachers.b.targets"]


@pytest.mark.parametrize("teacher", [HF, {**HF, "targets": "top_k"}])
def test_a_sweep_over_losses_with_targets_of_their_own_differs_in_the_loss_alone(teacher):
    swept = [students_keys(keys_of(recipe_of(teacher, loss))) for loss in ("jsd", "forward_kl", "text")]
    assert differing(swept) == ["loss.kind"]


def test_targets_that_a_recipe_asks_for_are_a_difference():
    asked = [{**HF, "targets": kind} for kind in ("dense", "auto")]
    dense, auto = (students_keys(keys_of(recipe_of(teacher, "jsd"))) for teacher in asked)
    assert differing([dense, auto]) == ["teacher.targets"]
    assert (dense.values["teacher.targets"], auto.values["teacher.targets"]) == ("dense", "top_k")


def judged(rows=None, max_length=512, **recipe):
    scores = {"evaluation_rows": rows} if rows else {}
    made = keys_of({"evaluation": {"kind": "exact_match"}, "training": {"max_length": max_length}, **recipe})
    return judged_on(made, scores, "exact_match").identity


def local(**more):
    return {"kind": "local", "path": "train.csv", **more}


def test_the_hash_of_the_rows_decides_and_the_paths_do_not():
    here, there = local(eval_path="test.csv"), local(eval_path="/home/me/test.csv", prompt_field="q")
    assert judged("aa", data=here) == judged("aa", data=there) != judged("bb", data=here)
    measured = {"kind": "exact_match", "compare": "final_answer"}
    assert judged("aa", data=here) != judged("aa", data=here, evaluation=measured)
    assert judged("aa") == judged("aa", evaluation={"kind": "exact_match", "speed": False, "samples": 3})


def test_without_the_hash_the_recipe_says_which_rows():
    file = local(eval_path="test.csv")
    assert judged(data=file) == judged(data={**file, "path": "other.csv", "rows": 10, "labelled_rows": 3})
    assert judged(data=file) != judged(data={**file, "eval_path": "other.csv"})
    assert judged(data=file) != judged(data={**file, "prompt_field": "q"})
    # a tenth of the training file, drawn by its own seed
    assert judged(data=local()) != judged(data=local(path="other.csv"))
    assert judged(data=local()) != judged(data=local(shuffle_seed=1))
    assert judged(data=local()) == judged(data=local(rows="100:"))
    problems = {"kind": "word_problems", "num_rows": 40}
    assert judged(data=problems) == judged(data={**problems, "num_rows": 99, "problem_seed": 5})
    assert judged(data=problems) != judged(data={**problems, "evaluation_rows": 7})


def test_lengths_count_where_likelihoods_are_the_task():
    bits = {"kind": "bits_per_byte"}
    assert judged("aa", 512) == judged("aa", 64)
    assert judged("aa", 512, evaluation=bits) != judged("aa", 64, evaluation=bits)
    assert judged("aa", evaluation=bits) == judged("aa", evaluation={**bits, "max_new_tokens": 3})
