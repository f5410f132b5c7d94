"""sbatch, srun and sacct for a cluster of one machine: enough of each to run what submitit writes. Not SLURM itself.

    python stand_in_slurm.py FOLDER      leaves the three commands in FOLDER, for PATH
`sbatch SCRIPT` keeps a copy of the script as $SLURM_SEEN, refuses it where $SLURM_REFUSES says why, or starts it with
what SLURM tells a batch script: SLURM_NTASKS of all tasks, SLURM_PROCID=0. `srun` starts nodes x tasks of them.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

JOB = "4242"
NODES = "localhost,node[07-09]"


def install(folder: Path) -> None:
    for name in ("sbatch", "srun", "sacct"):
        command = folder / name
        words = [sys.executable, str(Path(__file__).resolve()), name]
        command.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        command.chmod(0o755)


def sbatch(script: str) -> None:
    shutil.copy(script, os.environ["SLURM_SEEN"])
    if refusal := os.environ.get("SLURM_REFUSES"):
        sys.exit(f"sbatch: error: {refusal}")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", Path(script).read_text(), re.MULTILINE))
    nodes, each = int(asked.get("nodes", 1)), int(asked.get("ntasks-per-node", 1))
    batch_step = {"SLURM_JOB_ID": JOB, "SLURM_NTASKS": str(nodes * each), "SLURM_JOB_NUM_NODES": str(nodes)}
    alone = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": NODES}
    # who called sbatch reads its streams to their end, so the job has none of them
    apart = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    text = Path(script).read_text()  # submitit moves the file as soon as the job has a number
    subprocess.Popen(["bash", "-c", text], env={**os.environ, **batch_step, **alone}, start_new_session=True, **apart)
    print(f"Submitted batch job {JOB}")


def srun(*words: str) -> None:
    options = dict(pairwise(words))
    command = words[words.index(sys.executable) :]
    size, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_JOB_NUM_NODES"])
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(size), "SLURM_STEP_NODELIST": NODES}
    tasks = []
    for rank in range(size):
        node, local = divmod(rank, size // nodes)
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
        logs = [Path(options[stream].replace("%j", JOB).replace("%t", str(rank))) for stream in ("--output", "--error")]
        logs[0].parent.mkdir(parents=True, exist_ok=True)
        with logs[0].open("ab") as out, logs[1].open("ab") as err:
            tasks.append(subprocess.Popen(command, env={**os.environ, **step, **own}, stdout=out, stderr=err))
    sys.exit(max(task.wait() for task in tasks))


def sacct(*_: str) -> None:
    print(f"JobID|State|NodeList\n{JOB}|RUNNING|{NODES}")


if __name__ == "__main__":
    if sys.argv[1] in {"sbatch", "srun", "sacct"}:
        {"sbatch": sbatch, "srun": srun, "sacct": sacct}[sys.argv[1]](*sys.argv[2:])
    else:
        install(Path(sys.argv[1]))
