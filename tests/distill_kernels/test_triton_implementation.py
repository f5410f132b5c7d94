"""Which implementation runs, and that nothing of Triton is imported unless it is asked for."""

import os
import subprocess
import sys

import pytest
import torch
from distill_kernels import divergence
from distill_kernels.implementation import runs_triton

LOGITS = torch.zeros(2, 5)


def test_eager_is_the_default(monkeypatch):
    for value in (None, "eager"):
        monkeypatch.delenv("DISTILL_KERNELS", raising=False)
        if value is not None:
            monkeypatch.setenv("DISTILL_KERNELS", value)
        assert not runs_triton(LOGITS)


@pytest.mark.parametrize("value", ["Triton", "cuda", "", "1"])
def test_a_wrong_word_is_refused(monkeypatch, value):
    monkeypatch.setenv("DISTILL_KERNELS", value)
    with pytest.raises(ValueError, match=f"DISTILL_KERNELS: found '{value}'; needed one of eager, triton"):
        divergence(LOGITS, LOGITS, "jsd")


def test_triton_leaves_the_cpu_and_float64_to_eager(monkeypatch):
    monkeypatch.setenv("DISTILL_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not runs_triton(LOGITS)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not runs_triton(LOGITS.double())
    assert not runs_triton(LOGITS.to("meta"))


def test_without_triton_there_is_advice(monkeypatch):
    monkeypatch.setenv("DISTILL_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="pip install triton"):
        runs_triton(LOGITS)


def test_the_kernels_are_imported_where_they_run():
    code = (
        "import sys, torch, distill_kernels as kernels\n"
        "kernels.divergence(torch.zeros(2, 5), torch.zeros(2, 5), 'jsd')\n"
        "print([name for name in sys.modules if name.startswith('distill_kernels.triton_')])"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("DISTILL_KERNELS", "TRITON_INTERPRET")
    }
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
