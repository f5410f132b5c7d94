"""What a plan says of runs that would not start, or not run, on the hardware that is there."""

import pytest

from distill._process_checks import check_division, check_hardware
from distill.errors import DataError, RecipeError
from distill.hardware import hardware_of
from distill.planning.rates import flops_of
from tests.planning.test_plan import plan, recipe_of, stage

LLAMA = ["recipe=llama65b_to_7b", "licence.accept=[llama-1]"]
VLLM = ["recipe=qwen3_32b_to_0b6", "teacher=vllm"]


@pytest.mark.parametrize(
    ("typed", "hardware", "unit", "advice"),
    [
        (LLAMA, "64xh100-80gb", 128, ["training.batch_size=128", "training.gradient_accumulation_steps=1"]),
        (["recipe=llama2_70b_to_7b"], "3xh100-80gb", 12, ["training.batch_size=60", "training.batch_size=72"]),
        ([*LLAMA, "training.batch_size=60"], "8xh100-80gb", 16, ["training.batch_size=48", "training.batch_size=64"]),
    ],
)
def test_a_batch_that_cannot_be_divided_is_said_with_what_can(typed, hardware, unit, advice):
    made = plan(recipe_of(*typed), hardware)
    assert f"has to be a multiple of {unit}" in made.verdict and "everything fits" not in made.verdict
    for override in advice:
        assert override in made.verdict
        changed = recipe_of(*typed, override, f"hardware={hardware}")
        assert plan(changed).refused is None
        check_division(changed, hardware_of(hardware).count)
        check_hardware(changed)
    with pytest.raises(RecipeError, match=f"multiple of {unit}"):
        check_hardware(recipe_of(*typed, f"hardware={hardware}"))
    # nothing is trained, so nothing has to be divided
    check_hardware(recipe_of(*typed, f"hardware={hardware}", "until=teach"))
    assert plan(recipe_of(*typed, "until=teach"), hardware).refused is None


def test_tensor_parallelism_needs_the_devices_that_it_is_over():
    typed = [*VLLM, "teacher.tensor_parallel_size=8"]
    alone = stage(plan(recipe_of(*typed), "1xh100-80gb"), "teach")
    assert not alone.fits and alone.memory.weights == 2 * 32_762_123_264
    assert alone.said.startswith("teach: tensor_parallel_size = 8 devices, 1 is there: does not fit; smallest change: ")
    assert alone.change.overrides == "teacher.tensor_parallel_size=1"
    changed = stage(plan(recipe_of(*VLLM, alone.change.overrides), "1xh100-80gb"), "teach")
    assert changed.fits and changed.memory.total == alone.change.device_bytes
    assert stage(plan(recipe_of(*typed), "8xh100-80gb"), "teach").memory.weights == 2 * 32_762_123_264 / 8
    copies = [*typed, "teacher.extra_arguments=['--data-parallel-size=2']"]
    assert "= 16 devices, 8 are there" in stage(plan(recipe_of(*copies), "8xh100-80gb"), "teach").said
    assert stage(plan(recipe_of(*copies), "16xh100-80gb"), "teach").fits


def test_bfloat16_is_slow_or_refused_where_it_is_not_in_hardware():
    t4, l4 = hardware_of("1xt4-16gb"), hardware_of("1xl4-24gb")
    assert (flops_of(t4, "bfloat16"), flops_of(t4, "float16"), flops_of(t4, "float32")) == (8.1e12, 65e12, 8.1e12)
    assert flops_of(l4, "bfloat16") == 121e12
    made = plan(recipe_of("recipe=gptneo2b7_to_125m"), "1xv100-16gb")
    assert any("v100-16gb does not multiply bfloat16" in note for note in made.assumptions)
    assert not any("multiply" in n for n in plan(recipe_of("recipe=gptneo2b7_to_125m"), "1xl4-24gb").assumptions)
    served = ["recipe=math_assistant", "teacher=vllm", "teacher.quantization=awq"]
    refused = stage(plan(recipe_of(*served, "teacher.dtype=bfloat16"), "1xt4-16gb"), "teach")
    assert "vLLM refuses bfloat16 on t4-16gb" in refused.said and refused.change.overrides == "teacher.dtype=float16"
    assert stage(plan(recipe_of(*served, "teacher.dtype=float16"), "1xt4-16gb"), "teach").fits


def test_where_bfloat16_is_slow_only_what_can_be_typed_is_named():
    """LLaMA's weights are stored in float16, Gemma's in bfloat16, and teacher=hf has no other way to float16."""
    stored, other = (
        next(n for n in plan(recipe_of(recipe), "8xv100-32gb").assumptions if "does not multiply" in n)
        for recipe in ("recipe=llama65b_to_7b", "recipe=gemma3_27b_to_1b")
    )
    assert "teacher.dtype=auto takes float16, as stored: 8 times as fast" in stored and "dtype=" not in other
    slow = stage(plan(recipe_of("recipe=llama65b_to_7b"), "8xv100-32gb"), "teach")
    fast = stage(plan(recipe_of("recipe=llama65b_to_7b", "teacher.dtype=auto"), "8xv100-32gb"), "teach")
    assert fast.seconds == pytest.approx(slow.seconds / (125 / 15.7))


def test_a_server_that_is_named_as_faster_is_so_as_it_is_typed():
    typed = ["recipe=llama65b_to_7b", "teacher.dtype=bfloat16"]
    slow = stage(plan(recipe_of(*typed), "8xv100-32gb"), "teach")
    assert "teacher=vllm" in slow.faster.overrides
    fast = stage(plan(recipe_of(*typed, *slow.faster.overrides.split()), "8xv100-32gb"), "teach")
    assert fast.fits and fast.seconds == slow.faster.seconds


def test_no_server_is_named_for_weights_that_only_bitsandbytes_quantises():
    typed = ["recipe=math_assistant", "teacher.quantization=nf4", "teacher.targets=top_k"]
    asked = stage(plan(recipe_of(*typed, "teacher.model=Qwen/Qwen2.5-72B-Instruct"), "1xt4-16gb"), "teach")
    assert not asked.fits and (asked.change is None or "vllm" not in asked.change.overrides)


def test_a_quantised_server_holds_and_reads_quantised_weights():
    typed = ["recipe=math_assistant", "teacher=vllm"]
    whole, awq, fp8 = (
        stage(plan(recipe_of(*typed, *more), "1xh100-80gb"), "teach")
        for more in ([], ["teacher.quantization=awq"], ["teacher.quantization=fp8"])
    )
    # 28 blocks: q, o 3584 wide, k, v 512, three of the inner width 18,944; embedding and head stay in 16 bits
    linear = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944)
    assert whole.memory.weights == 2 * 7_615_616_512
    assert whole.memory.weights - fp8.memory.weights == linear
    assert whole.memory.weights - awq.memory.weights == linear * (2 - 0.5625)
    assert awq.seconds < fp8.seconds < whole.seconds


def test_a_missing_file_is_no_data_set_of_ten_thousand_rows(tmp_path):
    typed = ["recipe=gpt2xl_to_gpt2", f"data.path={tmp_path / 'missing.jsonl'}"]
    with pytest.raises(DataError, match=r"missing.jsonl: no such file"):
        plan(recipe_of(*typed))
    assert any("10,000 rows" in n for n in plan(recipe_of("recipe=gpt2xl_to_gpt2", "data.path=me/mine")).assumptions)


def test_plain_text_is_asked_nothing_long():
    evaluated = stage(plan(recipe_of(*LLAMA)), "evaluate")
    # float32 weights of the 7B are what takes most: no keys and values of 2,048 tokens that nobody asks
    assert evaluated.memory.weights == 4 * 6_738_415_616
    assert evaluated.memory.kv_cache < 1e9 and evaluated.memory.total < 35e9


def test_what_is_bought_comes_last():
    made = plan(recipe_of("recipe=math_assistant"), "1xrtx4090-24gb")
    train = stage(made, "train student")
    assert "adapter=lora" in train.change.overrides and "hardware" not in train.change.overrides
    changed = plan(recipe_of("recipe=math_assistant", *train.change.overrides.split()), "1xrtx4090-24gb")
    assert stage(changed, "train student").fits


@pytest.mark.parametrize(
    ("recipe", "hardware"),
    [
        (["recipe=opt66b_to_1b3", "teacher.device_map=null"], "1xa100-80gb"),
        (["recipe=math_assistant"], "1xrtx4090-24gb"),
    ],
)
def test_one_change_of_the_teacher_serves_the_stages_that_use_it(recipe, hardware):
    made = plan(recipe_of(*recipe), hardware)
    teach, evaluate = stage(made, "teach"), stage(made, "evaluate")
    assert not teach.fits and not evaluate.fits
    assert teach.change.overrides == evaluate.change.overrides == "teacher.quantization=nf4"
    again = plan(recipe_of(*recipe, teach.change.overrides), hardware)
    assert stage(again, "teach").fits and stage(again, "evaluate").fits


def test_evaluation_is_told_nothing_that_it_does_not_use():
    made = plan(recipe_of("recipe=low_resource_news"), "1xa100-40gb")
    evaluate = stage(made, "evaluate")
    assert evaluate.change.overrides == "teacher.quantization=nf4 evaluation.rows=32"
    changed = recipe_of("recipe=low_resource_news", *evaluate.change.overrides.split())
    assert stage(plan(changed, "1xa100-40gb"), "evaluate").memory.total == evaluate.change.device_bytes
