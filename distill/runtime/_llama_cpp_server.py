"""The child process of `llama_cpp.py`: llama.cpp's own server, alive for as long as its standard input is open.

Run by path with one JSON argument; imports nothing of distill. Prints one line, {"address": "http://127.0.0.1:PORT"}.
"""

import json
import os
import signal
import sys
from typing import Any, cast


def main() -> None:
    # Ctrl-C reaches every process of a terminal, and our parent may want to stop one answer only.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = json.loads(sys.argv[1])
    # What llama.cpp prints belongs to the log (standard error), and only our line to whoever started us.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import xllamacpp

    engine = cast(Any, xllamacpp)  # re-exports a compiled module without stubs
    params = engine.CommonParams()
    params.model.path = options["file"]
    params.n_parallel = options["num_slots"]
    params.n_ctx = options["context"] * options["num_slots"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["num_threads"]
    params.verbosity = 4  # 3 swallows the reason why a file does not load
    params.n_gpu_layers = 0
    params.port = 0  # any free one
    params.hostnames = ["127.0.0.1"]
    params.cache_ram_mib = 0  # no second prompt cache in memory beside the slots
    params.fit_params = params.ctx_shift = params.warmup = params.ui = False
    server = engine.Server(params)
    print(json.dumps({"address": server.listening_address}), file=answer, flush=True)
    sys.stdin.buffer.read()  # returns when our parent closes the pipe, or is gone
    os._exit(0)  # the server's threads have nothing to save


if __name__ == "__main__":
    main()
