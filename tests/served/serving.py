"""A real llama.cpp with a checkpoint's own float32 weights, so that only two engines and the wire are compared."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

QUICKSTART = ROOT / "distill" / "bundled" / "quickstart_teacher"


@dataclass(frozen=True)
class Serving:
    """Where it listens, what it calls its model, and the checkpoint that the weights are of."""

    address: str
    model: str
    checkpoint: Path

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def float32_file(checkpoint: Path, file: Path) -> Path:
    """The checkpoint as a GGUF whose numbers are all float32."""
    from distill.compression._gguf import write_gguf
    from distill.compression._gguf_mixture import Mixture

    write_gguf(checkpoint, file, Mixture("ALL_F32", lambda name, outline: "F32"))
    return file


@contextlib.contextmanager
def serving(checkpoint: Path, file: Path, context: int) -> Iterator[Serving]:
    """llama.cpp with the checkpoint, keys and values in float32 too."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    options = {
        "file": str(float32_file(checkpoint, file)),
        "num_threads": 1,
        "context": context,
        "num_slots": 4,
    }
    child = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("float32_server.py")), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with child:  # closes its pipe at the end, and with it the server
        assert child.stdout is not None
        yield Serving(json.loads(child.stdout.readline())["address"], str(file), checkpoint)
