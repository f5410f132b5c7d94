"""Predicted peak memory within 15 % of what a fresh process really takes. benchmarks/plan_memory.py has more of it."""

import importlib.util

import pytest

from tests.conftest import ROOT

TEXT = "teacher=none loss=text training.bf16=false until=train training.batch_size=24"
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}


@pytest.fixture(scope="module")
def bench():
    file = ROOT / "benchmarks" / "plan_memory.py"
    spec = importlib.util.spec_from_file_location("plan_memory", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(bench, tmp_path_factory):
    made = tmp_path_factory.mktemp("measured")
    bench.SHAPES["small"] = ("llama", {**bench.LLAMA, **SHAPE, "vocab_size": 16_000})
    bench.write_checkpoint(made / "small", *bench.SHAPES["small"])
    bench.write_data(made / "data.jsonl")
    return made


@pytest.mark.parametrize("more", ["training.max_steps=2", "training.gradient_checkpointing=true"])
def test_a_training_takes_what_was_planned(bench, folder, more):
    typed = bench.arguments(folder, f"student.model=small {TEXT} {more}")
    predicted = bench.predict(folder, typed)
    assert predicted == pytest.approx(bench.measure(folder / "run", typed), rel=0.15)
