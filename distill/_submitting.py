"""The side that submits: what has to be right before jobs are sent off, and submitit's errors in our words."""

import importlib.util
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from distill.errors import DistillError, RecipeError, StageFailed

LAUNCHER = "hydra/launcher="
NOTICE = "Jobs are sent off; what each says is in the folder .submitit/<job>/ of hydra.sweep.dir (outputs)."
STILL_RUNNING = "Jobs that were sent off run on: squeue --me lists those of SLURM, scancel ends them."


def check_launcher(overrides: Sequence[str], *, sweeps: bool) -> bool:
    """Whether the command line sends jobs off through submitit.

    Raises:
        RecipeError: a launcher is named where Hydra would not use it, is not installed, or has no srun to call.
    """
    typed = next((text for text in reversed(overrides) if text.startswith(LAUNCHER)), None)
    if typed is None or typed == f"{LAUNCHER}basic":
        return False
    if not sweeps:
        raise RecipeError(
            f"{typed} counts under -m (--multirun) only: without it, this run would start here and now.\n"
            f"python -m distill -m {typed} … sends it off, one value for each key or several."
        )
    if not typed.startswith(f"{LAUNCHER}submitit_"):
        return False
    if importlib.util.find_spec("hydra_plugins") is None or (
        importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None
    ):
        raise RecipeError(f"{typed} is not installed here.\nNext: pip install 'distill[slurm]'")
    if typed == f"{LAUNCHER}submitit_slurm" and shutil.which("srun") is None:
        raise RecipeError(
            f"{typed}: there is no srun here. Submit from a machine of the cluster where srun and sbatch\n"
            f"are found; {LAUNCHER}submitit_local tries the same jobs on this one."
        )
    return True


def explained(error: Exception) -> DistillError | None:
    """What submitit says of a job, in our words; None for errors that are not submitit's."""
    if not type(error).__module__.startswith("submitit."):
        return None
    text = str(error).strip()
    if "not requeued because" in text:
        return StageFailed(
            "The job was ended from outside, or its time (hydra.launcher.timeout_min) is over.\n"
            "What was finished is kept; the same command goes on. With submitit_slurm,\n"
            "hydra.launcher.max_num_timeout=N sends such a job off again by itself, N times."
        )
    if nothing := re.search(r"with path (.+)\n.*has not produced any output \(state: (.*)\)", text):
        return StageFailed(
            f"A job ended without a word (state: {nothing[2]}): killed, cancelled or out of memory.\n"
            f"Its logs: {Path(nothing[1]).parent}\n"
            "What was finished is kept; the same command goes on."
        )
    if trace := re.search(r"with trace:\n-+\n(.*?)\n-{10,}\n", text, re.DOTALL):
        logs = re.findall(r"^ +- (.+)$", text, re.MULTILINE)
        return StageFailed(f"A job failed before it could run: {trace[1].strip().splitlines()[-1]}\nLogs: {logs[0]}")
    said = "\n".join(text.splitlines()[-3:])
    return StageFailed(f"The job was not sent off. {said}\nhydra.launcher.KEY=VALUE changes what is asked of SLURM.")
