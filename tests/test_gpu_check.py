"""scripts/gpu_check and the benchmark, as far as they go without a GPU: they start, they count, they can say no."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

BENCHMARKS = ROOT / "triton_kernels" / "benchmarks"
SCRIPT = ROOT / "scripts" / "gpu_check"

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def modules(monkeypatch):
    """The benchmark's modules, importable for one test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = [file.stem for file in BENCHMARKS.glob("*.py")]
    yield
    for name in names:
        sys.modules.pop(name, None)


def run(command, **environment):
    kept = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=300)


def bench(tmp_path, *arguments):
    command = [sys.executable, BENCHMARKS / "bench.py", "--device", "cpu", "--out", tmp_path, *arguments]
    return run([str(part) for part in command])


@without_gpu
def test_it_says_that_there_is_no_gpu():
    ran = run([str(SCRIPT)])
    assert ran.returncode == 3 and ran.stdout == ""
    assert ran.stderr.count("\n") == 1 and "no GPU here" in ran.stderr and "NVIDIA GPU" in ran.stderr


def test_its_shell_is_well_formed():
    assert os.access(SCRIPT, os.X_OK)
    assert run(["bash", "-n", str(SCRIPT)]).returncode == 0


@pytest.mark.slow
@without_gpu
def test_a_rehearsal_runs_a_part_and_leaves_its_logs(tmp_path):
    before = sorted((BENCHMARKS / "results").glob("*"))
    arguments = ["--rehearse", "gpu_tests", "benchmark", "--", "--only", "b4,c1", "--providers", "ours"]
    ran = run([str(SCRIPT), *arguments], OUT=str(tmp_path / "out"), PEERS="", BUDGET="200")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "| gpu_tests | good |" in ran.stdout and "| benchmark | good | 2 cases |" in ran.stdout
    assert {"gpu_tests.log", "benchmark.log"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert sorted((BENCHMARKS / "results").glob("*")) == before


@pytest.mark.slow
@without_gpu
def test_a_part_without_time_is_reported_and_the_others_run():
    ran = run([str(SCRIPT), "--rehearse", "gpu_tests", "training"], OUT="", BUDGET="7")
    assert ran.returncode == 1
    assert "out of time" in ran.stdout + ran.stderr or "no time was left" in ran.stdout
    assert "| gpu_tests |" in ran.stdout and "| training |" in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["cpu", "gpu"])
def test_the_benchmark_runs_on_tiny_shapes(tmp_path, rows):
    ran = bench(tmp_path, "--rows", rows, "--tiny", "--repetitions", "2", "--no-memory", "--providers", "ours,PyTorch")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (written,) = tmp_path.glob("cpu_*.md")
    assert written.read_text() in ran.stdout
    assert "ours, eager" in ran.stdout and "WRONG" not in ran.stdout and "Missed" not in ran.stdout
    assert str(tmp_path) not in ran.stdout


def test_what_is_not_installed_is_a_line(tmp_path):
    arguments = ["--tiny", "--only", "2k-kl-fp32", "--repetitions", "1", "--providers", "ours,TRL,Liger chunked"]
    ran = bench(tmp_path, *arguments, "--no-memory")
    assert ran.returncode == 0, ran.stderr
    for package in ("trl", "liger_kernel"):
        if importlib.util.find_spec(package) is None:
            assert f": {package.replace('_', '-')} is not installed" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "b44"], "no case begins so"),
        (["--providers", "ours,theirs"], "none begins so"),
        (["--peers", "/nowhere"], "no such folder"),
        pytest.param(["--device", "cuda"], "sees no GPU", marks=without_gpu),
    ],
)
def test_bad_arguments(tmp_path, arguments, words):
    ran = bench(tmp_path, *arguments)
    assert ran.returncode == 2 and words in ran.stderr and ran.stderr.count("\n") == 1


def test_a_worker_that_dies_costs_one_provider(tmp_path, modules, monkeypatch):
    import bench as benchmark

    crashing = tmp_path / "worker.py"
    crashing.write_text(
        f"import os, sys\nsys.path[:0] = [{str(BENCHMARKS)!r}]\nimport json, providers, worker\n"
        "torch_compile = worker.pytorch_providers()[0]\n"
        "worker.pytorch_providers = lambda: [providers.Provider(name='PyTorch', make=lambda *_: os._exit(9)),"
        " providers.Provider(name='PyTorch again', make=torch_compile.make)]\n"
        "worker.main(worker.Plan(**json.loads(sys.argv[1])))\n"
    )
    monkeypatch.setattr(benchmark, "HERE", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "triton_kernels"))
    plan = benchmark.Plan(
        device="cpu",
        rows="cpu",
        names=["2k-kl-fp32"],
        records=str(tmp_path / "records"),
        repetitions=1,
        deadline=1e12,
        tiny=True,
        memory=False,
        providers=["ours, eager", "PyTorch"],
    )
    notes = benchmark._work(plan)
    report = benchmark.Report(benchmark.read(tmp_path / "records"))
    assert len(notes) == 1 and "code 9" in notes[0]
    assert [record["provider"] for record in report.measured] == ["ours, eager", "PyTorch again"]
    assert report.absences() == ["* PyTorch: crashed (code 9)"]


@pytest.fixture
def small_case(modules):
    """A case, its inputs and the truth."""
    import cases
    import definition

    case = next(case for case in cases.cpu_cases() if case.name == "2k-jsd-fp32").tiny()
    inputs = cases.make_inputs(case, torch.device("cpu"))
    return case, inputs, definition.truth_of(case, inputs)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda loss: loss, ""),
        (lambda loss: loss * 1.01, "loss off by 1.0e-02"),
        (lambda loss: loss * float("nan"), "loss off by nan"),
        (lambda loss: loss + 0.01 * (loss - loss.detach()), "dhidden off by 1.0e-02"),
        (lambda loss: loss.detach() + 0 * loss, "dhidden off by 1.0e+00"),
    ],
)
def test_the_check_can_fail(small_case, spoil, words):
    import measure
    import providers
    import worker

    case, inputs, truth = small_case
    right = providers._ours(case, inputs)
    step = providers.Step(loss=lambda: spoil(right.loss()))
    loss = measure.run_step(case, inputs, step)
    assert worker.what_is_wrong(case, measure.errors_of(case, inputs, step, truth, loss)) == words


def test_a_loss_that_is_a_mean_counts_as_a_sum(small_case):
    import measure
    import providers

    case, inputs, truth = small_case
    right = providers._ours(case, inputs)
    step = providers.Step(loss=lambda: right.loss() / case.num_rows, multiplier=case.num_rows)
    errors = measure.errors_of(case, inputs, step, truth, measure.run_step(case, inputs, step))
    assert errors.loss < 1e-5 and errors.worst_gradient() < 1e-4


def test_ours_must_keep_its_accuracy(small_case):
    import measure
    import worker

    case, _, truth = small_case
    mean_loss = truth[0] / case.num_rows
    provider = next(provider for provider in worker.all_providers() if provider.name == "ours, eager")
    for loss, gradient, words in ((1e-7, 1e-6, ""), (1e-4, 1e-6, "loss off"), (1e-7, 1e-3, "gradient off")):
        errors = measure.Errors(loss=loss, gradients={"dhead": gradient})
        assert worker.accuracy_missed(case, provider, errors, mean_loss, None).startswith(words)
        assert bool(words) == bool(worker.accuracy_missed(case, provider, errors, mean_loss, None))


@pytest.mark.parametrize("name", ["b4", "b5", "b6-masked", "b7", "a3", "a5-skew", "a5-tvd", "a5-ce", "c1", "c2", "c3"])
def test_the_definition_agrees_with_the_oracle(modules, monkeypatch, name):
    import cases
    import definition

    monkeypatch.syspath_prepend(ROOT / "tests" / "distill_kernels")
    from oracle import dense_loss, sparse_loss

    case = next(case for case in cases.gpu_cases() if case.name == name).tiny()
    inputs = cases.make_inputs(case, torch.device("cpu"))
    loss, gradients = definition.truth_of(case, inputs)
    options = {**case.options, "labels": inputs.labels}
    exact = {key: tensor.detach().double().requires_grad_() for key, tensor in inputs.students().items()}
    if case.op == "logits":
        expected = dense_loss(exact["dlogits"], inputs.teacher_logits.double(), case.kind, **options)
    else:
        head = exact.get("dhead", inputs.student_head.detach().double())
        logits = exact["dhidden"] @ head.T
        if case.op == "linear":
            teacher_logits = inputs.teacher_hidden.double() @ inputs.teacher_head.double().T
            expected = dense_loss(logits, teacher_logits, case.kind, **options)
        else:
            expected = sparse_loss(logits, inputs.token_ids, inputs.values, case.kind, case.tail, **options)
    assert loss == pytest.approx(expected.sum().item(), rel=1e-9)
    for key, right in zip(exact, torch.autograd.grad(expected.sum(), list(exact.values())), strict=True):
        torch.testing.assert_close(gradients[key].double(), right, rtol=1e-7, atol=1e-9)


def test_it_knows_every_test_that_needs_a_gpu(modules):
    """A test marked gpu outside the two folders would be collected, and run, by nobody."""
    import gpu_check

    marked = {
        file for file in (ROOT / "tests").rglob("*.py") if "mark.gpu" in file.read_text() and file != Path(__file__)
    }
    folders = (ROOT / gpu_check.KERNEL_TESTS, ROOT / gpu_check.PIPELINE_TESTS)
    assert len(marked) >= 3 and all(file.parent in folders for file in marked)


def test_a_part_that_could_not_run_is_not_good(modules, monkeypatch, capsys):
    """A table of nothing but "good", and exit code 0, would be taken for tests that passed."""
    import gpu_check

    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(gpu_check, "NEEDED_BY_DISTILL", ("rich", "no_such_package"))
    assert gpu_check.main(["--rehearse", "pipeline_tests"]) == 1
    said = capsys.readouterr().out
    assert "| pipeline_tests | FAILED | not run: no no_such_package here" in said and "good" not in said


def test_kernel_tests_without_triton_are_not_good(modules, monkeypatch, tmp_path):
    import gpu_check

    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None)
    good, words = gpu_check.Check(tmp_path, 1e12, False, []).kernel_tests_in_clusters(60)
    assert not good and words == "not run: triton is not installed"
