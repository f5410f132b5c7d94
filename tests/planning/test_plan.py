"""The plan of whole recipes: states, layouts, the boundary of what fits, time, money, and what is said."""

import dataclasses
import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from distill import _hydra
from distill._command import run_and_exit
from distill.encoding import load_tokenizer
from distill.planning import plan
from distill.planning.memory import Memory
from distill.planning.result import Stage
from distill.planning.show import HEADS, show
from distill.recipe import parse
from distill.windows import in_windows
from tests.conftest import cli_environment

SMALL = ["recipe=quickstart", "data.num_rows=200", "training.max_steps=10", "compression=[]", "baselines=[]"]
GPT2 = [
    *("recipe=quickstart", "data.num_rows=200", "training.max_steps=10", "compression=[]", "baselines=[]"),
    *("student=pretrained", "student.model=openai-community/gpt2", "teacher=none", "loss=text", "training.bf16=true"),
]
N = 124_439_808


MINE = "1xmine:memory_gb=48,bf16_tflops=180,bandwidth_gb=900"


def recipe_of(*typed):
    return parse(_hydra.compose(list(typed)).config)


def stage(made, name):
    return next(stage for stage in made.stages if stage.name == name)


def test_training_holds_sixteen_bytes_for_each_parameter_at_least():
    memory = stage(plan(recipe_of(*GPT2, "training.batch_size=1"), "1xh100-80gb"), "train").memory
    assert (memory.weights, memory.optimizer) == (4 * N, 8 * N)
    # at the end of the backward pass: all gradients, and the tied embedding's twice
    assert memory.moment == "end of the backward pass"
    assert memory.gradients == 4 * N + 4 * 50_257 * 768


def test_a_sharded_student_is_cut_over_all_devices_but_for_what_is_gathered():
    recipe = recipe_of(*GPT2, "training.batch_size=8", "training.sharding=full")
    memory = stage(plan(recipe, "8xh100-80gb"), "train").memory
    assert memory.optimizer == 8 * N / 8
    block = 12 * 768 * 768 + 13 * 768  # projections, biases and two norms of a GPT-2 block
    # the root (its embedding is the head too) whole in float32 for the step; two blocks at a time in 2 bytes
    assert memory.weights == 4 * N / 8 + 4 * 50_257 * 768 + 2 * 2 * block


def test_a_student_is_cut_of_its_own_accord_where_its_states_are_large():
    small = stage(plan(recipe_of(*GPT2, "training.batch_size=8"), "8xh100-80gb"), "train")
    assert "DDP over 8, 1 rows each" in small.layout
    large = recipe_of(*GPT2, "student.model=openai-community/gpt2-xl", "training.batch_size=8")
    assert "FSDP2 over 8" in stage(plan(large, "8xt4-16gb"), "train").layout


def test_fits_flips_exactly_at_the_boundary():
    at = dataclasses.replace(_stage(79.9999e9), available_bytes=80e9)
    assert not dataclasses.replace(at, memory=Memory(host_weights=8e9, host_rest=1e9 + 1)).fits
    assert at.fits and dataclasses.replace(at, memory=Memory(host_weights=8e9, host_rest=1e9)).fits
    assert at.fits and dataclasses.replace(at, memory=Memory(weights=80e9)).fits
    assert not dataclasses.replace(at, memory=Memory(weights=80e9 + 1)).fits
    recipe = recipe_of(*GPT2, "training.batch_size=1")
    needed = stage(plan(recipe, "1xh100-80gb"), "train").memory.total
    for room, fits in ((needed + 1e6, True), (needed - 1e6, False)):
        described = f"1xmine:memory_gb={room / 1e9:.6f},bf16_tflops=100,bandwidth_gb=1000"
        assert stage(plan(recipe, described), "train").fits is fits


def _stage(size):
    return Stage("train", "", "", Memory(weights=size), 80e9, 9e9, None, None, 0, 0, 0, "", 0)


def test_the_smallest_change_is_the_cheapest_that_fits_and_does_fit():
    recipe = recipe_of(*GPT2, "training.batch_size=64", "training.max_length=1024", "data.num_rows=200")
    described = "1xmine:memory_gb=4.3,bf16_tflops=100,bandwidth_gb=1000"
    train = stage(plan(recipe, described), "train")
    assert not train.fits
    key, _, steps = train.change.overrides.partition("=")
    assert key == "training.gradient_accumulation_steps"
    changed = recipe_of(*GPT2, "training.batch_size=64", "training.max_length=1024", train.change.overrides)
    after = stage(plan(changed, described), "train")
    assert after.fits and after.memory.total == train.change.device_bytes
    assert after.seconds == train.change.seconds
    fewer = next(n for n in range(int(steps) - 1, 0, -1) if 64 % n == 0)
    again = [*GPT2, "training.batch_size=64", "training.max_length=1024", f"{key}={fewer}"]
    assert not stage(plan(recipe_of(*again), described), "train").fits


def test_an_evaluation_that_does_not_fit_is_told_how_many_positions_do():
    described = "1xmine:memory_gb=4,bf16_tflops=18,bandwidth_gb=900"
    typed = [*GPT2, "training.batch_size=1", "evaluation.positions=10000"]
    evaluate = stage(plan(recipe_of(*typed), described), "evaluate")
    assert not evaluate.fits and evaluate.change.overrides == "evaluation.positions=2500"
    after = stage(plan(recipe_of(*typed, "evaluation.positions=2500"), described), "evaluate")
    assert after.fits and after.memory.total == evaluate.change.device_bytes
    assert not stage(plan(recipe_of(*typed, "evaluation.positions=5000"), described), "evaluate").fits


def test_long_texts_are_planned_as_the_rows_that_are_learnt_of_them(tmp_path, tiny_teacher):
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": f"The {n}th text. " * (1 + 40 * (n % 5 == 0))}) + "\n" for n in range(60))
    )
    typed = ["recipe=quickstart", "data=local", f"data.path={tmp_path / 't.jsonl'}", "data.text_field=text"]
    typed += [f"teacher.model={tiny_teacher}", "teacher.responses=data", "compression=[]", "baselines=[]"]
    typed += ["evaluation=bits_per_byte"]
    recipe = recipe_of(*typed, "training.max_length=64", "training.max_steps=null", "training.num_train_epochs=1")
    recipe = dataclasses.replace(recipe, until="train")
    tokenizer = load_tokenizer(tiny_teacher)
    rows, tokens = in_windows(recipe.data.load().train, [tokenizer], 64)
    made = plan(recipe, MINE)
    assert made.rows == pytest.approx(len(rows), rel=0.05) and len(rows) > 100
    assert stage(made, "teach").tokens == pytest.approx(tokens, rel=0.05)
    steps = round(len(rows) / recipe.training.batch_size)
    assert stage(made, "train").tokens == pytest.approx(
        steps * recipe.training.batch_size * tokens / len(rows), rel=0.1
    )


def test_a_long_article_of_the_hub_is_several_rows_and_all_of_its_tokens_are_learnt():
    typed = ["recipe=gptneo2b7_to_125m"]
    whole = plan(recipe_of(*typed, "training.max_length=2048"), "1xh100-80gb")
    short = plan(recipe_of(*typed, "training.max_length=64"), "1xh100-80gb")
    characters = 1130 * (241_787 - 500)  # of the hub's card; 500 are held out
    for made in (whole, short):  # each text's end and each row's beginning come on top
        tokens = characters / 4 + 241_287 + made.rows
        assert stage(made, "teach").tokens == pytest.approx(tokens, rel=1e-3)
    assert short.rows > 4 * whole.rows > 4 * 241_287


def test_a_65b_teacher_on_one_gpu_is_said_as_users_ask_for_it():
    typed = ["recipe=llama65b_to_7b", "teacher.device_map=null", "licence.accept=[llama-1]"]
    made = plan(recipe_of(*typed), "1xh100-80gb")
    assert made.verdict.startswith("1xh100-80gb: teach needs 131 GB for weights, 80 GB is there: does not fit; ")
    assert "smallest change: teacher.quantization=nf4 (then 45.5 GB; 5.59 hours)" in made.verdict
    assert "; or, with the weights as they are: " in made.verdict and "in the machine's memory" in made.verdict


def test_weights_that_do_not_fit_may_wait_in_the_machines_memory():
    typed = ["recipe=llama65b_to_7b", "teacher.device_map=null", "licence.accept=[llama-1]"]
    teach = stage(plan(recipe_of(*typed), "1xh100-80gb"), "teach")
    offered = teach.instead
    assert offered.offloads and "teacher.device_map=auto" in offered.overrides
    changed = recipe_of(*typed, *offered.overrides.split())
    made = plan(changed, "1xh100-80gb")
    after = stage(made, "teach")
    assert after.fits and (after.memory.total, after.memory.host) == (offered.device_bytes, offered.host_bytes)
    # 80 % of what CUDA leaves is filled; the rest of the float16 weights waits
    waiting = 2 * 65_285_660_672 - 0.8 * (80e9 - 1.5e9)
    assert after.memory.host == pytest.approx(waiting)
    # each batch fetches it over the bus, at 10 GB/s
    batches = made.rows / changed.teacher.batch_size
    whole = stage(plan(recipe_of(*typed), "1xb200-180gb"), "teach")
    arithmetic = whole.seconds * 2250 / 989  # the same reading at another rate
    assert after.seconds == pytest.approx(arithmetic + batches * waiting / 10e9)
    assert after.bound == "fetching weights" and "67.8 GB of it in host memory" in after.layout
    # it fits, and the way round the bus is said
    assert not after.instead.offloads and "teacher.quantization=nf4" in after.instead.overrides
    assert "without weights in the machine's memory: teacher.quantization=nf4" in after.said


def test_weights_do_not_wait_where_the_machine_has_no_memory_for_them():
    typed = ["recipe=llama65b_to_7b", "licence.accept=[llama-1]"]
    little = plan(recipe_of(*typed), "1xrtx4090-24gb")
    assert little.hardware == "1xrtx4090-24gb" and "of 64 GB of the machine's own memory" in little.verdict
    assert stage(little, "teach").change is None or not stage(little, "teach").change.offloads
    enough = plan(recipe_of(*typed), "1xrtx4090-24gb:host_gb=256")
    assert enough.hardware == "1xrtx4090-24gb:host_gb=256"
    assert stage(enough, "teach").change.offloads


def test_the_rows_of_one_subset_are_not_taken_for_another_ones():
    """English Wikipedia has 6.4 million articles, Simple English 241,787."""
    own = plan(recipe_of("recipe=gptneo2b7_to_125m"), "1xh100-80gb")
    other = plan(recipe_of("recipe=gptneo2b7_to_125m", "data.subset=20231101.en"), "1xh100-80gb")
    assert any("241,287 texts are about 248,006 rows of training.max_length=1024" in note for note in own.assumptions)
    said = "wikimedia/wikipedia (20231101.en) is not read by a plan; 10,000 rows of training.max_length=1024 tokens"
    assert any(said in note for note in other.assumptions)


def test_time_and_money_are_those_of_six_n_per_token():
    recipe = recipe_of(*GPT2, "training.batch_size=1024", "training.max_steps=1000")
    made = plan(recipe, "1xh100-80gb", price_per_gpu_hour=2.0)
    train = stage(made, "train")
    # no checkpointing: three passes; at 40 % of 989 TFLOP/s
    assert train.flops == pytest.approx(6 * N * train.tokens, rel=0.03)
    assert train.seconds == pytest.approx(train.flops / (0.4 * 989e12))
    assert made.price == pytest.approx(2.0 * sum(s.seconds for s in made.stages) / 3600)
    assert plan(recipe, "1xh100-80gb").price is None


def test_a_plan_up_to_teach_without_a_teacher_has_no_stage_and_says_so():
    made = plan(recipe_of("recipe=quickstart_teacher", "until=teach"))
    assert made.stages == () and made.fits and made.hours == 0
    assert ": nothing to load: until=teach" in made.verdict


def test_where_devices_wait_the_faster_engine_is_named_and_is_as_fast_as_said():
    typed = ["recipe=llama65b_to_7b", "licence.accept=[llama-1]"]
    slow = stage(plan(recipe_of(*typed)), "teach")
    assert "7 of 8 devices wait" in slow.bound
    assert slow.faster.overrides == "teacher=vllm teacher.tensor_parallel_size=8"
    fast = stage(plan(recipe_of(*typed, *slow.faster.overrides.split())), "teach")
    assert (fast.seconds, fast.memory.total) == (slow.faster.seconds, slow.faster.device_bytes)
    assert fast.fits and "wait" not in fast.bound and fast.faster is None
    # arithmetic bounds both: eight devices take an eighth of the time
    assert fast.seconds == pytest.approx(slow.seconds / 8)
    assert "faster: teacher=vllm teacher.tensor_parallel_size=8 (" in slow.hurried
    assert "; top_k targets instead of sampled)" in slow.hurried


@pytest.mark.parametrize(
    ("typed", "hardware"),
    [
        (["recipe=llama65b_to_7b"], "1xb200-180gb"),  # nothing waits
        (["recipe=llama65b_to_7b", "teacher.live=true"], "8xh100-80gb"),  # vLLM's cannot stay beside the student
        (["recipe=llama65b_to_7b", "teacher.targets=dense"], "8xh100-80gb"),  # nor tell a whole distribution
        (["recipe=megatron8b3_to_gpt2", "teacher.model=bundled:quickstart_teacher"], "2xh100-80gb"),  # of no family
    ],
)
def test_no_engine_is_named_that_would_not_do(typed, hardware):
    stages = plan(recipe_of(*typed, "licence.accept=[llama-1]"), hardware).stages
    assert [s.faster for s in stages] == [None] * len(stages)


def test_a_batch_smaller_than_the_cluster_leaves_devices_idle():
    train = stage(plan(recipe_of(*GPT2, "training.batch_size=8"), "64xh100-80gb"), "train")
    assert "56 of 64 devices have no rows" in train.bound


ON_POLICY = [
    *(
        "recipe=gpt2xl_to_gpt2",
        "loss=jsd",
        "loss.hard_weight=0",
        "baselines=[]",
        "training.on_policy=0.5",
        "training.max_steps=100",
    ),
    *("training.batch_size=64", "training.gradient_accumulation_steps=1", "training.on_policy_max_new_tokens=100000"),
]


def own_answers(hardware, *typed):
    """(seconds, FLOP) that on_policy adds to the training, and the stage with it."""
    without = stage(plan(recipe_of(*ON_POLICY, "training.on_policy=0", *typed), hardware), "train")
    own = stage(plan(recipe_of(*ON_POLICY, *typed), hardware), "train")
    return own.seconds - without.seconds, own.flops - without.flops, own


def test_own_answers_are_written_by_the_student_and_read_by_the_teacher():
    seconds, flops, own = own_answers("1xh100-80gb")
    length = own.tokens / (100 * 64)
    both = 124_439_808 + 1_557_611_200
    assert flops == pytest.approx(100 * 32 * length * 2 * both, rel=0.15)  # 2 N a token, and attention
    assert "in the student's own answers" in own.bound
    # twelve layers are started for each token of a batch's longest answer, 128 answers at a time
    assert seconds > 100 * 32 / 128 * 12 * 0.8e-3
    halved, same, _ = own_answers("2xh100-80gb")
    assert same == pytest.approx(flops) and 0.4 * seconds < halved < 0.6 * seconds
    assert own_answers("1xh100-80gb", "training.on_policy_max_new_tokens=8")[0] < seconds / 2


def test_downloads_are_the_published_weights_in_their_stored_dtype():
    made = plan(recipe_of("recipe=llama65b_to_7b", "licence.accept=[llama-1]"))
    assert {d.name: d.bytes for d in made.downloads} == {
        "huggyllama/llama-65b": 2 * 65_285_660_672,
        "huggyllama/llama-7b": 2 * 6_738_415_616,
    }
    assert made.disk_bytes > sum(d.bytes for d in made.downloads) + made.store_bytes


def test_weights_that_the_hub_has_as_bin_alone_lie_on_the_disk_twice(monkeypatch):
    recipe = recipe_of("recipe=opt66b_to_1b3")
    made = plan(recipe)
    fetched = 2 * (65_719_701_504 + 1_315_758_080)
    assert sum(d.bytes for d in made.downloads) == fetched
    notes = [line for line in made.assumptions if "as .bin alone" in line]
    assert len(notes) == 1 and "facebook/opt-66b (131 GB), facebook/opt-1.3b (2.63 GB)" in notes[0]
    monkeypatch.setattr("distill.planning.make.bytes_to_convert", lambda model: 0.0)
    once = plan(recipe)
    assert made.disk_bytes - once.disk_bytes == pytest.approx(fetched, abs=1) and not [
        n for n in once.assumptions if ".bin" in n
    ]
    llama = plan(recipe_of("recipe=llama65b_to_7b", "licence.accept=[llama-1]"))
    assert not [line for line in llama.assumptions if ".bin" in line]


def test_json_has_the_keys_that_scripts_read():
    made = plan(recipe_of(*SMALL)).as_dict()
    assert json.loads(json.dumps(made)) == json.loads(json.dumps(made, default=str))
    assert set(made) == {
        *("recipe", "hardware", "devices", "nodes", "device_bytes", "teacher_parameters", "student_parameters"),
        *("rows", "stages", "downloads", "store_bytes", "disk_bytes", "price_per_gpu_hour", "assumptions", "licence"),
        "refused",
        *("fits", "hours", "node_hours", "gpu_hours", "price", "verdict", "together"),
    }
    assert set(made["stages"][0]) == {
        *("name", "what", "layout", "memory", "available_bytes", "host_available_bytes", "change", "instead"),
        *("faster", "tokens", "flops", "seconds", "bound", "disk_bytes", "fits"),
    }
    assert set(made["stages"][0]["memory"]) == {
        *("weights", "optimizer", "gradients", "activations", "logits", "kv_cache", "process", "moment", "total"),
        *("host_weights", "host_rest", "host", "lacks"),
    }
    assert [s["name"] for s in made["stages"]] == ["teach", "train", "evaluate"]


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (["recipe=quickstart", "hardware=8xh100-80g"], 2, "Did you mean h100-80gb"),
        (["recipe=quickstart", "price_per_gpu_hour=cheap"], 2, "needs a number"),
        (["recipe=quickstart", "price_per_gpu_hour"], 2, "'price_per_gpu_hour' is no argument"),
        (["recipe=quikstart"], 2, "quickstart"),
        (["recipe=quickstart", "--jsn"], 2, "distill.plan --help"),
        (["recipe=quickstart", "hardware=1xl4-24gb"], 0, "everything fits"),
        (["recipe=quickstart_teacher", "until=teach"], 0, "nothing to load"),
        (["recipe=quickstart", f"hardware={MINE}"], 0, f"on {MINE}:"),
        (["recipe=quickstart", f"hardware='{MINE}'"], 0, f"on {MINE}:"),
        (["recipe=customer_service"], 2, "recipe=customer_service_teacher makes"),
    ],
)
def test_the_command(tmp_path, typed, code, said):
    command = [sys.executable, "-m", "distill.plan", *typed]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=cli_environment(COLUMNS="100"), timeout=300
    )
    assert ran.returncode == code, ran.stderr
    assert said in (ran.stdout if code == 0 else ran.stderr)
    if code:
        assert len(ran.stderr.strip().splitlines()) <= 6 and not ran.stdout
    else:
        assert max(map(len, ran.stdout.splitlines())) <= 100
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [80, 100])
def test_tables_break_no_figure_and_no_heading(width):
    out = io.StringIO()
    show(plan(recipe_of("recipe=llama65b_to_7b")), Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = [line.split() for line in lines]
    assert ["stage", *HEADS, "sum", "there", "host", "fits"] in words
    assert ["stage", "what,", "and", "where", "tokens", "PFLOP", "hours", "bound", "by"] in words
    assert {"arithmetic;", "bandwidth", "compress", "evaluate"} <= {word for line in words for word in line}


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(
    ("recipe", "hardware"), [("low_resource_news", "2xh100-80gb"), ("gemma3_27b_to_1b", "8xv100-32gb")]
)
def test_a_long_name_of_a_stage_takes_no_digit_from_a_figure(recipe, hardware, width):
    """A sum of 131 that is shown as 13 is no sum."""
    made, out = plan(recipe_of(f"recipe={recipe}"), hardware), io.StringIO()
    show(made, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    rows = [line.split() for line in text[: text.index("time")].splitlines() if line.split()[-1:] in (["yes"], ["NO"])]
    assert ["stage", *HEADS, "sum", "there", "host", "fits"] in [line.split() for line in text.splitlines()]
    for row, of in zip(rows, made.stages, strict=True):
        parts = [row[at] for at in range(len(row)) if row[at][0].isdigit()]
        total = next(n for n, part in enumerate(parts) if part == f"{of.available_bytes / 1e9:.1f}") - 1
        shown = [float(part) for part in parts[: total + 1]]
        assert shown[-1] == pytest.approx(of.memory.total / 1e9, abs=0.05)
        assert shown[-1] == pytest.approx(sum(shown[:-1]), abs=0.04 * len(shown))
    assert "e+" not in text.splitlines()[0]


def test_a_fault_of_ours_is_one_sentence_and_exits_with_1(capsys, monkeypatch):
    monkeypatch.delenv("DISTILL_DEBUG", raising=False)

    def breaks():
        raise ValueError("max() arg is an empty sequence")

    with pytest.raises(SystemExit) as ended:
        run_and_exit(breaks)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and len(said.splitlines()) == 2
    assert "ValueError: max() arg" in said and "a fault of distill" in said and "Traceback" not in said
