"""Kinds of rotary positions: ours are those that transformers computes, and any other is refused by name."""

import pytest

from distill.errors import RecipeError
from distill.family.known import FAMILIES, config_of
from distill.family.rope import KINDS, refuse_unknown_rope


def test_the_kinds_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert {*ROPE_INIT_FUNCTIONS, "default"} == {*KINDS}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "yarnn", "rope_theta": 1e4}},
        {"rope_scaling": {"type": "yarnn", "factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "yarnn"}, "sliding_attention": {"rope_type": "default"}}},
    ],
)
def test_an_unknown_kind_is_named(rope):
    with pytest.raises(RecipeError, match=r"student.model.*'yarnn'.*longrope"):
        refuse_unknown_rope({"model_type": "llama", **rope}, "student.model=x")


@pytest.mark.parametrize("rope", [{}, {"rope_scaling": None}, {"rope_scaling": {"type": "linear", "factor": 2.0}}])
def test_what_transformers_reads_passes(rope):
    refuse_unknown_rope({"model_type": "llama", **rope}, "student.model=x")


def test_every_published_checkpoint_passes():
    models = [checkpoint.model for family in FAMILIES for checkpoint in family.published]
    for model in models:
        refuse_unknown_rope(config_of(model, None, "teacher.model"), model)
    assert len(models) > 80
