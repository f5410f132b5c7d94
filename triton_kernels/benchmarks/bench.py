"""The benchmark: ours beside PyTorch, torch.compile and what other packages have, each checked against float64 first.

    python triton_kernels/benchmarks/bench.py                       on a GPU if there is one
    python triton_kernels/benchmarks/bench.py --device cpu --threads 2 --peers FOLDER
    python triton_kernels/benchmarks/bench.py --only b4,b5,a2 --budget 300

Prints one table and writes results/<device>_<date>.md beside this file. Needs torch and this repository. Peers are
timed where they are installed, or unpacked in a folder that --peers names:

    pip install --no-deps --target FOLDER liger-kernel==0.8.5 'trl==1.16.*' torchtune==0.6.1 speculators==0.9.0

Exit code 0; 1 if something of ours computes another function, misses its accuracy or does not run; 2 for bad
arguments. Peers that are wrong, missing or out of memory are lines in the table.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from cases import cpu_cases, gpu_cases  # noqa: E402
from table import Report, command_line, device_name, read, slug  # noqa: E402
from worker import CRASHED, Plan, all_providers  # noqa: E402


def main(arguments: list[str]) -> int:
    """Runs what the command line asks for; the exit code."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(options, Path(folder) / "records.jsonl")
        if isinstance(plan, str):
            print(plan, file=sys.stderr)
            return 2
        notes = _work(plan)
        report = Report(read(Path(plan.records)))
    if not report.measured and not report.absent:
        print(f"nothing was measured; {' '.join(notes) or 'the worker said why'}", file=sys.stderr)
        return 1
    document = report.document(device_name(plan.device), command_line(arguments), notes)
    print(document)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "cpu" if plan.device == "cpu" else slug(device_name("cuda"))
    (options.out / f"{name}_{datetime.date.today()}.md").write_text(document)
    return 1 if report.failures() else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", choices=["cpu", "gpu"], help="which cases; those of the device")
    parser.add_argument("--only", default="", help="cases by name or by how it begins, e.g. b4,a or 32k-kl")
    parser.add_argument("--providers", default="", help="providers by how their names begin, e.g. 'ours,PyTorch'")
    parser.add_argument("--peers", type=Path, help="folder with unpacked packages")
    parser.add_argument("--repetitions", type=int, help="rounds of a case: 30 on a GPU, 9 on a CPU")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case begins")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU")
    parser.add_argument("--tiny", action="store_true", help="cut every shape to almost nothing: a test, no measurement")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace, records: Path) -> Plan | str:
    if options.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: this torch sees no GPU; use --device cpu or a machine with one."
    if options.peers is not None and not options.peers.is_dir():
        return f"--peers {options.peers}: no such folder; pip install --no-deps --target makes one."
    rows = options.rows or ("gpu" if options.device == "cuda" else "cpu")
    known = [case.name for case in (gpu_cases() if rows == "gpu" else cpu_cases())]
    wanted = [start for start in options.only.split(",") if start]
    for start in wanted:
        if not any(name.startswith(start) for name in known):
            return f"--only {start}: no case begins so; there are {', '.join(known)}."
    names = [provider.name for provider in all_providers()]
    providers = [start for start in options.providers.split(",") if start]
    for start in providers:
        if not any(name.startswith(start) for name in names):
            return f"--providers {start}: none begins so; there are {'; '.join(names)}."
    if options.peers is not None:
        sys.path.append(str(options.peers.resolve()))  # for the versions; after what is installed, as in the worker
    if options.threads:
        torch.set_num_threads(options.threads)
    return Plan(
        device=options.device,
        rows=rows,
        names=[name for name in known if not wanted or any(name.startswith(start) for start in wanted)],
        records=str(records),
        repetitions=options.repetitions or (30 if options.device == "cuda" else 9),
        deadline=min(time.monotonic() + options.budget, 1e12),  # JSON has no infinity
        threads=options.threads,
        peers="" if options.peers is None else str(options.peers.resolve()),
        tiny=options.tiny,
        memory=not options.no_memory,
        providers=providers,
    )


def _work(plan: Plan) -> list[str]:
    """Workers one after the other until the plan is done; a line for each that ended early."""
    notes = []
    grace = 25  # the case in which the deadline falls may end
    # without: providers whose peaks are apart by tens of GiB take turns, and each would wait for memory
    whole_pages = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} if plan.device == "cuda" else {}
    while plan.names:
        argument = json.dumps(asdict(plan))
        environment = {**whole_pages, **os.environ, "PYTHONPATH": _python_path()}
        worker = subprocess.Popen([sys.executable, str(HERE / "worker.py"), argument], env=environment)
        try:
            code = worker.wait(timeout=min(plan.deadline + grace - time.monotonic(), 1e6))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            notes.append(f"Out of time during {_last_start(plan)}.")
            break
        if code == 0:
            break
        name, provider = _last_start(plan)
        notes.append(f"The process ended with code {code} in {name}, {provider}; the rest was measured in another one.")
        if name == "" or [name, provider] in plan.skipped:
            notes.append("It did so twice.")
            break
        _note_crash(plan, name, provider, code)
        whole = provider in ("timing", "inputs and float64")
        left = plan.names[plan.names.index(name) + whole :]
        plan = replace(plan, names=left, skipped=[*plan.skipped, [name, provider]])
    return notes


def _last_start(plan: Plan) -> tuple[str, str]:
    starts = [record["start"] for record in read(Path(plan.records)) if "start" in record]
    return (starts[-1][0], starts[-1][1]) if starts else ("", "the start")


def _note_crash(plan: Plan, name: str, provider: str, code: int) -> None:
    if code == CRASHED:  # said by the worker itself
        return
    record = {"case": name, "provider": provider, "absent": f"crashed (code {code})", "failed": provider[:4] == "ours"}
    with Path(plan.records).open("a") as file:
        file.write(json.dumps(record) + "\n")


def _python_path() -> str:
    return os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
