"""What `scripts/gpu_check` does once it has found a Python that sees a GPU; its comments say how it is called."""

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

import torch  # noqa: E402
from table import device_name, slug, versions  # noqa: E402

ROOT = HERE.parents[1]
PARTS = {
    "gpu_tests": 120.0,
    "pipeline_tests": 180.0,
    "training": 90.0,
    "kernel_tests_on_gpu": 100.0,
    "kernel_tests_in_clusters": 60.0,
    "kernel_tests": 90.0,
    "benchmark": 0.0,
}
"""Seconds at most. The benchmark comes last and takes what is left: it does as much as there is time for."""

KERNEL_TESTS, PIPELINE_TESTS = "tests/distill_kernels", "tests/gpu"
NEEDED_BY_DISTILL = (
    *("transformers", "peft", "accelerate", "safetensors", "hydra", "omegaconf", "antlr4", "pydantic"),
    *("rich", "jinja2", "matplotlib"),
)

SHORT_RUN = [
    "recipe=quickstart",
    "name=gpu_check",
    "teacher.max_new_tokens=32",
    "teacher.batch_size=128",
    "data.num_rows=600",
    "data.labelled_rows=400",
    "data.evaluation_rows=40",
    "data.new_template_rows=10",
    "training.max_steps=100",
    "training.logging_steps=20",
    "evaluation.max_new_tokens=32",
    "compression=[bf16]",
    "baselines=[]",
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a part ended."""

    part: str
    good: bool
    words: str
    seconds: float


class Check:
    """Runs parts one after the other; logs and tables are kept in `folder`."""

    def __init__(self, folder: Path, deadline: float, rehearsing: bool, benchmark: list[str]) -> None:
        self.folder, self.deadline, self.rehearsing, self.benchmark_arguments = folder, deadline, rehearsing, benchmark
        folders = [ROOT, HERE.parent, HERE, ROOT / KERNEL_TESTS]  # the last two for pytest's plugins
        path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}

    def run(self, part: str) -> Outcome:
        """One part, never longer than its budget and never past the deadline."""
        left = self.deadline - time.monotonic()
        budget = min(PARTS[part] or left, left)
        if budget < 5:
            return Outcome(part=part, good=False, words="no time was left", seconds=0.0)
        started = time.monotonic()
        good, words = getattr(self, part)(budget)
        return Outcome(part=part, good=good, words=words, seconds=time.monotonic() - started)

    def gpu_tests(self, budget: float) -> tuple[bool, str]:
        """The kernels' tests marked gpu."""
        return self._pytest("gpu_tests", budget, ["-m", "gpu", KERNEL_TESTS])

    def pipeline_tests(self, budget: float) -> tuple[bool, str]:
        """distill's own tests marked gpu: asking, training, a whole run, each beside the CPU's."""
        if missing := _missing():
            return False, f"not run: no {', '.join(missing)} here; scripts/gpu_check says how to bring them"
        marked = "not gpu" if self.rehearsing else "gpu"
        self.environment.pop("DISTILL_KERNELS", None)
        # what a device did is computed once for the tests of a file
        return self._pytest("pipeline_tests", budget, ["-m", marked, PIPELINE_TESTS], together="loadfile")

    def kernel_tests(self, budget: float) -> tuple[bool, str]:
        """The other tests of the kernels on this machine's torch; compiling the kernels without a GPU is slow."""
        self.environment["DISTILL_KERNELS"] = "triton"
        return self._pytest("kernel_tests", budget, ["-m", "not gpu and not slow", KERNEL_TESTS])

    def kernel_tests_on_gpu(self, budget: float) -> tuple[bool, str]:
        """Those of the rows once more, their tensors on the GPU."""
        return self._on_gpu("kernel_tests_on_gpu", budget, [], "dense", "sparse", "linear")

    def kernel_tests_in_clusters(self, budget: float) -> tuple[bool, str]:
        """And once more those of dense rows, each held by a cluster however few there are."""
        if importlib.util.find_spec("triton") is None:
            return self.rehearsing, "not run: triton is not installed"
        from distill_kernels.triton_resident import has_clusters

        if not self.rehearsing and not has_clusters(torch.device("cuda")):
            return True, "no clusters here: they need Triton 3.8 and compute capability 9"
        return self._on_gpu("kernel_tests_in_clusters", budget, ["-p", "clustered_rows"], "dense", "linear")

    def _on_gpu(self, name: str, budget: float, plugins: list[str], *files: str) -> tuple[bool, str]:
        if self.rehearsing:
            return True, "nothing to rehearse without a GPU"
        self.environment["DISTILL_KERNELS"] = "triton"
        paths = [f"{KERNEL_TESTS}/test_{file}.py" for file in files]
        return self._pytest(name, budget, ["-p", "on_gpu", *plugins, "-m", "not gpu and not slow", *paths])

    def training(self, budget: float) -> tuple[bool, str]:
        """A short run of distill with the triton kernels, or the loop that needs nothing but torch."""
        self.environment["DISTILL_KERNELS"] = "triton"
        missing = _missing()
        if missing or self.rehearsing:
            plain = [str(HERE / "train_loop.py"), *(["--tiny", "--device", "cpu"] if self.rehearsing else [])]
            code, log = self._logged("training", budget, plain)
            rows = [
                line.strip("| ").replace(" | ", ", ") for line in log.splitlines() if line.startswith(("| e", "| t"))
            ]
            why = f"no {', '.join(missing)} here" if missing else "rehearsing"
            return code == 0, f"plain loop with the op ({why}); JSD first, last, tokens/s, MiB: {'; '.join(rows)}"
        with tempfile.TemporaryDirectory() as folder:
            self.environment["DISTILL_STORE"] = f"{folder}/store"
            code, _ = self._logged("training", budget, ["-m", "distill", *SHORT_RUN], cwd=Path(folder))
            curves = [file.read_text().splitlines() for file in Path(folder).glob("store/student/*/curve.jsonl")]
            scores = [json.loads(file.read_text()) for file in Path(folder).glob("outputs/gpu_check/*/scores.json")]
        losses = [point["loss_nats"] for curve in curves for point in map(json.loads, curve)]
        learnt = f", loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""
        for model in (model for score in scores for model in score["models"]):
            verified = ", verified" if model.get("verified") else ""
            learnt += f"; {model['name']} on {model['speed']['device']}"
            learnt += f" {model['speed']['decode_tokens_per_second']:.0f} tokens/s{verified}"
        return code == 0, f"python -m distill recipe=quickstart, 100 steps{learnt}{_ended(code)}"

    def benchmark(self, budget: float) -> tuple[bool, str]:
        """As many cases as there is time for; the most important ones come first."""
        arguments = [str(HERE / "bench.py"), "--out", str(self.folder), "--budget", f"{max(budget - 50, 1):.0f}"]
        if self.rehearsing:
            arguments += ["--device", "cpu", "--rows", "gpu", "--tiny", "--repetitions", "2", "--no-memory"]
            arguments += ["--providers", "ours,PyTorch,TRL"]
        if os.environ.get("PEERS"):
            arguments += ["--peers", os.environ["PEERS"]]
        code, log = self._logged("benchmark", budget, [*arguments, *self.benchmark_arguments])
        cases = len(re.findall(r"^\| \*\*", log, re.MULTILINE))
        missed = log.partition("\nMissed:\n")[2].strip().splitlines()
        return code == 0, f"{cases} cases{_ended(code)}{'; ' * bool(missed)}{'; '.join(line[2:] for line in missed)}"

    def _pytest(self, name: str, budget: float, arguments: list[str], together: str = "load") -> tuple[bool, str]:
        if importlib.util.find_spec("pytest") is None:
            return False, "pytest is not installed"
        several = []
        if importlib.util.find_spec("xdist") is not None:
            several = ["-n", str(min(8, os.cpu_count() or 1)), "--dist", together]
        quiet = ["-q", "-p", "no:cacheprovider"]
        code, log = self._logged(name, budget, ["-m", "pytest", *quiet, *several, *arguments])
        counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?|xfailed|warnings?)", log.strip().split("\n")[-1])
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", log, re.MULTILINE)
        nothing_ran = code == 5 or (code == 0 and not any("passed" in count for count in counts))
        words = (
            ", ".join(counts) + (f"; first {failed[0]}" if failed else "") + _ended(code if code not in (0, 1) else 0)
        )
        return code == 0 and (self.rehearsing or not nothing_ran), words

    def _logged(self, name: str, budget: float, arguments: list[str], cwd: Path = ROOT) -> tuple[int, str]:
        """Exit code (124 after the budget) and output of a Python process, which is also printed and kept."""
        print(f"\n== {name}, at most {budget:.0f} s", flush=True)
        path = self.folder / f"{name}.log"
        environment = {**self.environment, "PYTHONUNBUFFERED": "1"}
        with path.open("w") as log:
            # a session of its own: what it started ends with it
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=budget)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                code = 124
        text = path.read_text(errors="replace")
        print(text if name == "benchmark" else "\n".join(text.splitlines()[-25:]), flush=True)
        return code, text


def main(arguments: list[str]) -> int:
    """Runs the parts, prints and writes the table; the exit code."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments[:cut])
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"{part}: no such part; there are {', '.join(PARTS)}.")
    started = time.monotonic()
    sys.path += filter(None, [os.environ.get("PEERS")])  # for the versions
    with tempfile.TemporaryDirectory() as folder:
        deadline = started + float(os.environ.get("BUDGET", 540)) - 5
        check = Check(Path(folder), deadline, options.rehearse, arguments[cut + 1 :])
        name = f"{slug(device_name('cpu' if options.rehearse else 'cuda'))}_{datetime.date.today()}_gpu_check.md"
        outcomes, document = [], ""
        for part in options.parts or PARTS:
            outcomes.append(check.run(part))
            document = _document(outcomes, options.rehearse)
            (Path(folder) / name).write_text(document)
            _deliver(Path(folder), options.rehearse)  # now: a machine may be taken away
    print("\n" + document)
    return 0 if all(outcome.good for outcome in outcomes) else 1


def _document(outcomes: list[Outcome], rehearsing: bool) -> str:
    heading = "# Rehearsal of scripts/gpu_check" if rehearsing else f"# scripts/gpu_check on {device_name('cuda')}"
    rows = [f"| {o.part} | {'good' if o.good else 'FAILED'} | {o.words} | {o.seconds:.0f} |" for o in outcomes]
    return "\n".join([heading, "", f"{versions()}.", "", "| part | | | seconds |", "|---|---|---|---|", *rows, ""])


def _deliver(folder: Path, rehearsing: bool) -> None:
    """Tables to results/ and everything to $OUT; a rehearsal leaves nothing in the repository."""
    targets = [] if rehearsing else [(HERE / "results", "*.md")]
    if os.environ.get("OUT"):
        targets.append((Path(os.environ["OUT"]), "*"))
    for target, kind in targets:
        target.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(kind):
            shutil.copy(file, target)


def _missing() -> list[str]:
    return [name for name in NEEDED_BY_DISTILL if importlib.util.find_spec(name) is None]


def _ended(code: int) -> str:
    return {0: "", 124: "; out of time"}.get(code, f"; exit code {code}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
