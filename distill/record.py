"""RunRecord: what ran, on what, with which result. `record.jsonl` for programs, `logbook.md` for people."""

import datetime
import functools
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from distill.hardware import num_cores, this_cpu, told_by_driver
from distill.run_folder import hide_secrets_in_command

PACKAGES = (
    "distill",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "hydra-core",
    "triton",
    "gguf",
    "xllamacpp",
)


class RunRecord:
    """Appends events to a run folder; every line reaches the file at once, so a killed run keeps what it knew."""

    def __init__(self, run: Path, *, recipe: str, seed: int):
        self.run = run
        self._append(
            {
                "event": "start",
                "recipe": recipe,
                "run": run.name,
                "seed": seed,
                "command": hide_secrets_in_command("python -m distill " + shlex.join(sys.argv[1:])),
                "versions": _versions(),
                "git": _git(),
                "hardware": hardware(),
                "time": _now(),
            }
        )
        self.log(f"started `{recipe}` in {run.name}")

    def stage(self, name: str, *, fingerprint: str, reused: bool, why: str, made: Path, **measured: Any) -> None:
        """One finished stage: seconds, peak_bytes, resumed_from_step and world_size come in `measured`.

        Where the stage used a GPU, its own `gpu_peak_bytes` too; `peak_bytes` is the process's resident memory so far.
        """
        event = {"event": "stage", "name": name, "fingerprint": fingerprint, "reused": reused, "why": why}
        defaults = {"resumed_from_step": None, "seconds": 0.0, "peak_bytes": peak_bytes(), "world_size": 1}
        self._append({**event, **defaults, **measured, "made": os.path.relpath(made)})
        self.log(f"{name}: {'reused' if reused else 'made'} {fingerprint} ({why})")

    def log(self, words: str) -> None:
        """One line in the logbook."""
        log(self.run, words)

    def _append(self, event: dict[str, Any]) -> None:
        with (self.run / "record.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def log(run: Path, words: str) -> None:
    """One line in the logbook of `run`, which may have no record yet."""
    with (run / "logbook.md").open("a", encoding="utf-8") as file:
        file.write(f"* {_now()} {words}\n")


def hardware() -> dict[str, Any]:
    """CPU, cores, memory and GPU of this machine, as far as they can be told without loading torch."""
    cpuinfo = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = this_cpu().memory_bytes / 2**30
    return {"cpu": model, "cores": num_cores(), "memory_gib": round(memory, 1), "gpu": gpu_name()}


@functools.cache
def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU, asked of its driver; None where there is none, or none may be used."""
    names = told_by_driver("name")
    return names[0].strip() if names else None


def peak_bytes() -> int:
    """Peak resident memory of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git() -> str | None:
    """Short commit of the checkout that distill runs from, with +dirty when files differ; None in a wheel."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    ask = ["git", "-C", str(root), "describe", "--always", "--dirty=+dirty", "--exclude=*"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
