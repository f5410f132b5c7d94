"""One command with which every stage fits, when the stages ask for different changes."""

import shlex
from dataclasses import replace

from distill import _hydra
from distill.planning import plan
from distill.planning.result import Remedy
from distill.planning.together import together
from distill.recipe import parse


def planned(*typed):
    return plan(parse(_hydra.compose(list(typed)).config))


def test_changes_of_all_stages_are_one_command_with_which_everything_fits():
    typed = ["recipe=math_assistant", "hardware=1xt4-16gb"]
    alone = planned(*typed)
    made = together(alone, lambda more: planned(*typed, *more))
    asked = {word for stage in alone.stages if not stage.fits for word in stage.change.overrides.split()}
    assert len({stage.change.overrides for stage in alone.stages if stage.change}) > 1
    assert set(made.together.overrides.split()) == asked
    again = planned(*typed, *made.together.overrides.split())
    assert again.fits and again.hours * 3600 == made.together.seconds
    assert f"All together: {made.together.overrides} (then everything fits; " in made.verdict
    assert made.as_dict()["together"] == {"overrides": made.together.overrides, "seconds": made.together.seconds}


def test_what_one_change_leaves_short_is_changed_again():
    """The first round's words do not suffice; the second's replace them, in the quotes that they are typed with."""
    fits = planned("recipe=quickstart", "until=train", "baselines=[]")
    teach, train = fits.stages
    described = "\"hardware='4xmine:memory_gb=1,bf16_tflops=1,bandwidth_gb=1'\""

    def short(name, overrides):
        stage = {"teach": teach, "train": train}[name]
        return replace(stage, available_bytes=1.0, change=Remedy(overrides, 1.0, 0.0, 1.0, False))

    first = replace(fits, stages=(short("teach", "teacher.batch_size=2"), short("train", described)))
    second = replace(fits, stages=(short("teach", "teacher.batch_size=1"), train))
    rounds, seen = iter([second, fits]), []
    made = together(first, lambda more: seen.append(more) or next(rounds))
    bare = "hardware='4xmine:memory_gb=1,bf16_tflops=1,bandwidth_gb=1'"
    assert seen == [["teacher.batch_size=2", bare], ["teacher.batch_size=1", bare]]
    assert shlex.split(made.together.overrides) == ["teacher.batch_size=1", bare]


def test_nothing_is_promised_where_a_stage_has_no_change_or_one_is_enough():
    fits = planned("recipe=quickstart", "until=train", "baselines=[]")
    teach, train = (
        replace(stage, available_bytes=1.0, change=Remedy(f"{stage.name}.x=1", 1.0, 0.0, 1.0, False))
        for stage in fits.stages
    )
    one = replace(fits, stages=(teach, fits.stages[1]))
    assert together(one, lambda more: fits) is one
    none = replace(fits, stages=(teach, train, replace(train, name="evaluate", change=None)))
    assert together(none, lambda more: fits) is none
    never = replace(fits, stages=(teach, train))
    assert together(never, lambda more: never) is never


def test_all_devices_heal_each_with_a_whole_four_bit_student():
    typed = ["recipe=math_assistant", "compression=[bnb_nf4_lora]", "training.sharding=full"]
    one, eight = (planned(*typed, f"hardware={count}xh100-80gb") for count in (1, 8))
    (alone,), (together_,) = ([stage for stage in made.stages if stage.name == "compress"] for made in (one, eight))
    assert (alone.layout, together_.layout) == ("one device", "healing: DDP over 8")
    assert together_.flops == alone.flops and together_.seconds < alone.seconds
    # an eighth of the rows, and the same weights: nothing of them is cut
    assert together_.memory.weights == alone.memory.weights
    assert together_.memory.activations < alone.memory.activations


def test_a_live_teacher_lies_beside_the_student_that_is_healed():
    typed = ["recipe=math_assistant", "compression=[bnb_nf4_lora]", "hardware=1xh100-80gb"]
    stored, live = (planned(*typed, f"teacher.live={on}") for on in ("false", "true"))
    (without,), (beside,) = ([stage for stage in made.stages if stage.name == "compress"] for made in (stored, live))
    (training,) = (stage for stage in live.stages if stage.name in {"train", "train student"})
    (alone,) = (stage for stage in stored.stages if stage.name in {"train", "train student"})
    of_teacher = training.memory.weights - alone.memory.weights
    assert of_teacher > 1e9 and beside.memory.weights - without.memory.weights == of_teacher
    assert beside.seconds > without.seconds
