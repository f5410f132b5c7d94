"""Stands in for `python -m vllm.entrypoints.openai.api_server`: vLLM's command line and schema, llama.cpp's numbers.

What goes wrong is said in STAND_IN: "die", "sick", or "die after N" replies to POST. STAND_IN_REPORT names a file for
what it was started with.
"""

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.served.dialects import Vllm


class StandIn(Vllm):
    """vLLM with the name that it was told to serve the model under, and with a key."""

    name = "teacher"
    replies_left = -1

    def reply(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": self.name, "owned_by": "vllm", "max_model_len": 192}]}
        if body is not None:
            self.replies_left -= 1
            if self.replies_left == 0:
                print("EngineDeadError: the GPU has gone", flush=True)
                os._exit(3)
        return super().reply(path, body)


def main() -> None:
    assert sys.argv[1:3] == ["-m", "vllm.entrypoints.openai.api_server"], sys.argv
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--model", "--served-model-name", "--host", "--dtype", "--revision", "--quantization"):
        parser.add_argument(name)
    for name in ("--port", "--tensor-parallel-size", "--pipeline-parallel-size", "--max-logprobs", "--max-model-len"):
        parser.add_argument(name, type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--enforce-eager", action="store_true")
    asked = parser.parse_args(sys.argv[3:])
    how = os.environ.get("STAND_IN", "")
    print(f"starting with {vars(asked)} and the key {os.environ['VLLM_API_KEY']}", flush=True)
    facts = {
        "argv": sys.argv,
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "group": os.getpgid(0),
        "pid": os.getpid(),
    }
    Path(os.environ["STAND_IN_REPORT"]).write_text(json.dumps(facts))
    if how == "die":
        print("ValueError: no GPU is large enough", flush=True)
        sys.exit(1)
    if how == "sick":
        time.sleep(600)
    _serve(asked, int(how.removeprefix("die after ")) if how else -1)


def _serve(asked: argparse.Namespace, replies: int) -> None:
    from distill.runtime.llama_cpp import LlamaCpp
    from tests.served.serving import float32_file

    file = float32_file(Path(asked.model), Path("model.gguf").resolve())
    with LlamaCpp(file, num_threads=1, context=192) as runtime:
        server = StandIn(runtime, asked.port)
        server.name, server.replies_left = asked.served_model_name, replies
        server.key = os.environ["VLLM_API_KEY"]
        with server:
            threading.Event().wait()
