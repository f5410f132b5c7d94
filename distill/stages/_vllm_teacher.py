"""teacher=vllm: starts vLLM's OpenAI-compatible server, asks it as any served teacher, and stops it.

vLLM is never imported here: it runs in its own environment (`teacher.python`), which may hold other versions of
everything. PYTHONSAFEPATH and an empty working directory keep our folders off its path, `triton_kernels` above all.
vLLM itself has not been run with this: what its arguments and replies are is taken from its documentation.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distill.errors import StageFailed
from distill.example import Example
from distill.served.child import ServerProcess, free_port
from distill.served.client import Served
from distill.served.endpoint import Endpoint
from distill.stages._served_teacher import ServedTeacher, journal_of
from distill.stages.teach import Wanted
from distill.teacher.vllm import Vllm

LEAST_MAX_LOGPROBS = 20
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@contextmanager
def open_vllm(
    teacher: Vllm,
    wanted: Wanted,
    examples: Sequence[Example],
    journals: Path,
    note: Callable[[str], None],
    *,
    on_policy: bool = False,
) -> "Iterator[ServedTeacher]":
    """vLLM with the checkpoint, healthy and ready to be asked; it is stopped at the end, however that comes.

    Raises:
        StageFailed: it does not start, or ended while it was asked; with the end of its log.
        RecipeError: it cannot give what the loss needs.
    """
    name = Path(teacher.model).name if Path(teacher.model).is_dir() else teacher.model
    port, key = free_port(), secrets.token_urlsafe(32)
    process = ServerProcess(
        command_of(teacher, name, port),
        environment_of(key),
        port,
        start_seconds=teacher.start_seconds,
        name=f"vLLM ({teacher.python})",
        secret=key,
    )
    endpoint = Endpoint(
        base_url=f"http://127.0.0.1:{port}/v1",
        model=name,
        key=key,
        **teacher.pace,
    )
    note(f"{name}: starting vLLM with {teacher.python}; it may take up to {teacher.start_seconds:g} s")
    with process:
        try:
            with Served(endpoint, journal_of(journals, *_identity(teacher)), note) as served:
                yield ServedTeacher(teacher, wanted, served, examples, name, note, on_policy=on_policy)
        except StageFailed as failed:
            if process.exit_code is None:
                raise
            raise StageFailed(
                f"vLLM ended with exit code {process.exit_code} while it was asked. Everything answered so far is "
                f"kept; run it again.\nThe end of what it said:\n{process.tail()}"
            ) from failed


def command_of(teacher: Vllm, name: str, port: int) -> list[str]:
    """The command line of the server; the key is not on it, for every user of the machine can read it."""
    given = {
        "--revision": teacher.revision,
        "--max-model-len": teacher.max_model_len,
        "--quantization": teacher.quantization,
        "--gpu-memory-utilization": teacher.gpu_memory_utilization,
    }
    arguments = {
        "--model": teacher.model,
        "--served-model-name": name,
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": teacher.dtype,
        "--tensor-parallel-size": teacher.tensor_parallel_size,
        "--pipeline-parallel-size": teacher.pipeline_parallel_size,
        "--max-logprobs": max(LEAST_MAX_LOGPROBS, teacher.top_k),
        **{argument: value for argument, value in given.items() if value is not None},
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    return [teacher.python, "-m", "vllm.entrypoints.openai.api_server", *words, *teacher.extra_arguments]


def environment_of(key: str) -> dict[str, str]:
    """What the server inherits: nothing of our own Python; its key."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return {**kept, "PYTHONSAFEPATH": "1", "VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1"}


def _identity(teacher: Vllm) -> list[str]:
    """What an answer in the journal depends on beside the request. Of a folder: its place, and when it was written."""
    folder = Path(teacher.model)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    written = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files if file.is_file()]
    settings = (teacher.revision, teacher.dtype, teacher.quantization, teacher.max_model_len)
    return ["vllm", teacher.model, *map(str, settings), *teacher.extra_arguments, *written]
