"""verify: a package, in a fresh process and in its own runtime, must say what its student said.

One fresh process for each runtime loads the packages as their users would. It compares token ids, the divergence
from the student on held-out text, the likeliest token, and greedy answers, and the prompts that its own chat template
makes. What fails is reported as failed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.artifact import write_whole
from distill.compression import Compression
from distill.encoding import prompt_text
from distill.errors import StageFailed
from distill.example import Example
from distill.progress import console

VERSION = 2
"""Part of the fingerprint: raise it when a verification would judge otherwise."""
ROWS = 64
POSITIONS = 1000
GREEDY_TOKENS = 48
"""Of each greedy answer that is compared, or as many as an answer may have."""


def settings(compression: Compression) -> dict[str, Any]:
    """What decides the verdict, beside student, package and evaluation rows."""
    return {"version": VERSION, "max_kl_nats": compression.max_kl_nats, "rows": ROWS, "positions": POSITIONS}


def verify_packages(
    runtime: str,
    student: Path,
    packages: Mapping[str, tuple[Path, Compression]],
    examples: Sequence[Example],
    folder: Path,
    answer_tokens: int = GREEDY_TOKENS,
) -> dict[str, dict[str, Any]]:
    """Name → proof for packages of one runtime, made by one fresh process.

    Raises:
        StageFailed: the process itself died; its last words are in the message and in `folder`.
    """
    request = {
        "runtime": runtime,
        "student": str(student),
        "packages": {
            name: {"path": str(path), "max_kl_nats": c.max_kl_nats, "kind": c.kind}
            for name, (path, c) in packages.items()
        },
        "prompts": [example.prompt for example in examples[:ROWS]],
        "prompt_texts": [prompt_text(example.prompt) for example in examples[:ROWS]],
        "responses": [example.response for example in examples[:ROWS]],
        "positions": POSITIONS,
        "greedy_tokens": min(GREEDY_TOKENS, answer_tokens),
    }
    folder.mkdir(parents=True, exist_ok=True)
    asked, answered = folder / "request.json", folder / "proofs.json"
    write_whole(asked, json.dumps(request))
    answered.unlink(missing_ok=True)
    # PYTHONSAFEPATH: what lies in the working directory must not shadow what a user's process would import
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "distill.stages._verify_process", str(asked), str(answered)]
    with console().status(f"a fresh process loads {', '.join(packages)}"):
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    (folder / "process.log").write_text(ran.stdout + ran.stderr)
    if ran.returncode or not answered.exists():
        last = (ran.stderr.strip() or ran.stdout.strip() or "no output").splitlines()[-1]
        raise StageFailed(
            f"verify ({runtime}): the fresh process ended with {ran.returncode}: {last}\n"
            f"All of it: {folder / 'process.log'}"
        )
    return json.loads(answered.read_text())
