"""Table: the records of the workers as markdown, with what one needs to measure the same again."""

import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

COLUMNS = ("case", "provider", "ms (p20–p80)", "× ours", "of floor", "extra MiB", "loss off", "gradients off", "")
PACKAGES = ("torch", "triton", "liger-kernel", "trl", "torchtune", "speculators", "transformers")


class Report:
    """All that the workers wrote, as a table."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.measured = [record for record in records if "seconds" in record]
        self.absent = [record for record in records if "absent" in record]
        self.ceilings = next((record for record in records if "ceilings" in record), None)

    def failures(self) -> list[str]:
        """What of ours is wrong, misses its accuracy or could not run."""
        lines = [f"{r['case']}, {r['provider']}: {r['absent']}" for r in self.absent if r.get("failed")]
        for record in self.measured:
            if record["ours"]:
                wrong = record["note"] if record.get("note", "").startswith("WRONG") else record.get("missed")
                lines += [f"{record['case']}, {record['provider']}: {wrong}"] if wrong else []
        return lines

    def table(self) -> str:
        """One row for each case and provider."""
        lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        names = list(dict.fromkeys(record["case"] for record in self.measured))
        for name in names:
            rows = [record for record in self.measured if record["case"] == name]
            ours = next((record for record in rows if record["ours"] and record["seconds"]), None)
            first = rows[0]
            target = f", target {first['target_ms']:g} ms on an H200" if first["target_ms"] else ""
            floor = first["floor_seconds"] * 1e3
            lines.append(f"| **{name}** | {first['title']}; floor {floor:.3g} ms{target}" + " |" * 8)
            lines += [self._row(record, ours) for record in rows]
        return "\n".join(lines)

    def _row(self, record: dict[str, Any], ours: dict[str, Any] | None) -> str:
        seconds = record["seconds"]
        took = ratio = share = ""
        if seconds:
            low, high = quantiles(seconds)
            took = f"{_ms(statistics.median(seconds))} ({_ms(low)}–{_ms(high)})"
            share = f"{record['floor_seconds'] / statistics.median(seconds):.0%}"
            if ours is not None:
                ratio = f"{ratio_of(record, ours):.2f}"
        extra = record["extra_bytes"]
        gradients = ", ".join(f"{name} {error:.1e}" for name, error in record["gradient_errors"].items())
        memory = "" if extra is None else f"{extra / 2**20:,.0f}"
        note = "; ".join(part for part in (record.get("note"), record.get("missed")) if part)
        loss = "–" if record["loss_error"] is None else f"{record['loss_error']:.1e}"
        cells = ("", record["provider"], took, ratio, share, memory, loss, gradients, note)
        return f"| {' | '.join(cells)} |"

    def absences(self) -> list[str]:
        """A line for each provider and reason, with the cases that it holds for."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for record in self.absent:
            reasons.setdefault((record["provider"], record["absent"]), []).append(record["case"])
        every = {record["case"] for record in self.measured + self.absent}
        lines = []
        for (provider, reason), names in reasons.items():
            where = "" if every <= set(names) else f" ({', '.join(dict.fromkeys(names))})"
            lines.append(f"* {provider}: {reason}{where}")
        return lines

    def document(self, device: str, command: str, notes: list[str]) -> str:
        """The results file."""
        counts = sorted({len(record["seconds"]) for record in self.measured if record["seconds"]})
        rounds = " to ".join(str(count) for count in sorted({*counts[:1], *counts[-1:]}))
        ceilings = []
        if self.ceilings is not None:
            rates = self.ceilings["ceilings"].items()
            ceilings = [f"{name} products {rate / 1e12:.3g} TFLOP/s" for name, rate in rates]
            ceilings.append(f"copy {self.ceilings['bytes_moved'] / 1e12:.3g} TB/s read and written")
        parts = [
            f"# {device}",
            f"    {command}",
            f"{versions()}.",
            f"Median of {rounds} rounds in which the providers take turns, p20 and p80 in brackets; forward and "
            "backward. × ours: the median of the ratios within a round. Extra memory: the peak above the inputs and "
            "the gradients. Off: from float64, relative, gradients in the 2-norm.",
            f"Ceilings measured here: {', '.join(ceilings)}. Of floor: the time that the case's products (or, for "
            "logits, its bytes) need at that rate, over the time taken.",
            *notes,
            self.table(),
            *(["Not in the table:\n\n" + "\n".join(self.absences())] if self.absent else []),
            *(["Missed:\n\n" + "\n".join(f"* {line}" for line in self.failures())] if self.failures() else []),
        ]
        return "\n\n".join(parts) + "\n"


def ratio_of(record: dict[str, Any], other: dict[str, Any]) -> float:
    """How many times as long, the median over the rounds that both took part in."""
    pairs = zip(record["seconds"], other["seconds"], strict=False)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """p20 and p80, interpolated."""
    if len(seconds) < 2:
        return seconds[0], seconds[0]
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return tenths[1], tenths[7]


def read(path: Path) -> list[dict[str, Any]]:
    """The records so far; a line that a killed worker left half-written is dropped."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def device_name(device: str) -> str:
    """The chip's name, never the machine's; `device` is cpu or cuda."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> str:
    """Of Python, the packages that matter and the driver."""
    known = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            known.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            known.append(f"no {package}")
    return ", ".join(known + _gpu_state())


def _gpu_state() -> list[str]:
    if not torch.cuda.is_available():
        return []
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.draw", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()
    except OSError:
        return []
    return [f"driver, clocks and power after the run {found[0]}"] if found else []


def slug(name: str) -> str:
    """For a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def command_line(arguments: list[str]) -> str:
    """As one would type it from the root of the repository; a folder of this machine is named by what it holds."""
    shown, hidden = ["python triton_kernels/benchmarks/bench.py"], {"--peers": "PEERS", "--out": "OUT"}
    for before, argument in zip(["", *arguments], arguments, strict=False):
        shown.append(hidden.get(before, shlex.quote(argument)))
    return " ".join(shown)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


if __name__ == "__main__":
    print(Report(read(Path(sys.argv[1]))).table())
