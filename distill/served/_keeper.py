"""Keeps one command alive for as long as its standard input is open; run by path, imports nothing of distill.

The command gets a process group of its own. When our parent closes the pipe, or is gone however it ended, the whole
group is told to end, and killed if it does not: vLLM's workers would otherwise keep a GPU's memory for ever.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 10.0


def main() -> None:
    options = json.loads(sys.argv[1])
    child = subprocess.Popen(options["command"], stdin=subprocess.DEVNULL, process_group=0)
    threading.Thread(target=_end_with_parent, args=(child,), daemon=True).start()
    code = child.wait()
    _signal(child.pid, signal.SIGKILL)  # workers that outlived it
    os._exit(code if code >= 0 else 128 - code)


def _end_with_parent(child: "subprocess.Popen[bytes]") -> None:
    sys.stdin.buffer.read()  # returns when the pipe is closed
    _signal(child.pid, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    _signal(child.pid, signal.SIGKILL)


def _signal(group: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, what)


if __name__ == "__main__":
    main()
