"""Lengths of generated answers, and the hours that follow from them, against sums by hand."""

import pytest

from distill.planning.rates import longest_of
from tests.planning.test_plan import plan, recipe_of, stage


def test_a_thinking_teacher_writes_to_its_limit_in_every_batch():
    made = plan(recipe_of("recipe=qwen3_32b_to_0b6"))
    assert any("250" not in note and "600 of thinking, 850 tokens" in note for note in made.assumptions)
    # the longest of 64 answers of 850 tokens reaches 1,536; 64 layers take 0.8 ms each for every one of these steps
    by_hand = 14_511 / 64 * 1536 * 64 * 0.8e-3
    teach = stage(made, "teach")
    assert "kernel launches" in teach.bound
    # the prompts' first pass and the targets' prefill come on top
    assert by_hand < teach.seconds < 1.25 * by_hand
    told = plan(recipe_of("recipe=qwen3_32b_to_0b6", "data.prompt_template='{instruction} /no_think'"))
    assert any("250 tokens on average" in note for note in told.assumptions)


def test_a_published_length_is_taken_where_there_is_one():
    made = plan(recipe_of("recipe=math_assistant"))
    assert any("chat models' to openai/gsm8k, 313 tokens" in note for note in made.assumptions)
    by_hand = 4 * 7473 / 64 * 512 * 28 * 0.8e-3
    assert by_hand < stage(made, "teach").seconds < 1.25 * by_hand
    # a base model is not known to say more than the data do
    base = plan(recipe_of("recipe=math_assistant", "teacher.model=Qwen/Qwen2.5-7B", "teacher.revision=null"))
    assert any("as long as the data's own, 72 tokens" in note for note in base.assumptions)


def test_the_longest_of_a_batch_is_what_draws_of_such_lengths_give():
    import random

    draw = random.Random(0)
    drawn = [max(draw.expovariate(1 / 100) for _ in range(16)) for _ in range(4000)]
    assert longest_of(16, 100, 10_000) == pytest.approx(sum(drawn) / len(drawn), rel=0.03)
    assert longest_of(16, 100, 200) == 200
    assert longest_of(1, 100, 200) == 100


def test_a_server_takes_the_next_row_when_one_ends_and_waits_for_none():
    typed = ["recipe=code_assistant", "teacher=vllm", "teacher.tensor_parallel_size=2"]
    short, long = (plan(recipe_of(*typed, f"teacher.max_new_tokens={most}")) for most in (400, 4000))
    # both write 350 tokens on average: only the room for keys and values differs
    assert stage(long, "teach").tokens == stage(short, "teach").tokens


def test_training_a_small_student_waits_for_its_kernels():
    made = plan(recipe_of("recipe=qwen3_32b_to_0b6"))
    train = stage(made, "train student")
    steps = round(2 * 14_511 / 64)
    # forward, forward again for what was not kept, backward: 28 layers in two micro-batches a step
    assert train.seconds == pytest.approx(steps * 2 * 3 * 28 * 0.8e-3)
    assert train.bound == "kernel launches"
    assert "launches" not in stage(plan(recipe_of("recipe=quickstart"), "1xcpu-8gb"), "train student").bound
