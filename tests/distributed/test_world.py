"""What processes tell each other, and what one process alone makes of it."""

import pytest

from distill import _process_checks, distributed
from distill._hydra import compose
from distill.distributed import ALONE, World
from distill.errors import RecipeError
from distill.recipe import parse


def test_one_process_alone_waits_for_nobody():
    assert ALONE.leads and ALONE.size == 1
    assert ALONE.share("value") == "value" and ALONE.gather(3) == [3]
    ALONE.wait()
    ALONE.job_over()
    ALONE.leave(1)


def test_a_launcher_that_says_half_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RecipeError, match=r"RANK.*are not set.*\n*.*torchrun"):
        distributed.join()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("ACCELERATE_USE_FSDP", "true", "FSDP"), ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision=bf16")],
)
def test_what_the_recipe_decides_is_refused_from_accelerate(monkeypatch, name, value, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=rf"configured for {said}.*") as refused:
        distributed.join()
    assert "training.sharding" in str(refused.value) and "training.bf16" in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "size", "said"),
    [
        (
            "training.batch_size=64",
            3,
            "multiple of 3.\nUse training.batch_size=63 or training.batch_size=66",
        ),
        ("training.gradient_accumulation_steps=8", 16, "has to be a multiple of 128.\nUse training.batch_size=128"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_numbers(monkeypatch, typed, size, said):
    recipe = parse(compose(["recipe=quickstart", typed]).config)
    _process_checks.check_processes(recipe)  # one process can
    monkeypatch.setattr(distributed, "_world", World(rank=0, size=size))
    with pytest.raises(RecipeError) as refused:
        _process_checks.check_processes(recipe)
    assert said in str(refused.value) and len(str(refused.value).splitlines()) <= 6


def test_four_bit_weights_are_not_cut(monkeypatch):
    bundled = ["student=pretrained", "student.model=bundled:quickstart_teacher"]
    recipe = parse(compose(["recipe=quickstart", *bundled, "adapter=qlora", "training.sharding=full"]).config)
    monkeypatch.setattr(distributed, "_world", World(rank=0, size=2))
    with pytest.raises(RecipeError, match=r"cannot cut the four-bit weights"):
        _process_checks.check_processes(recipe)
