"""ServerProcess: a server that we start, wait for and stop, with everything that it started, however we end."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.errors import RecipeError, StageFailed

POLL_SECONDS = 0.2
STOP_SECONDS = 20.0
TAIL_LINES, TAIL_LETTERS = 12, 1500


class ServerProcess:
    """A command that serves on 127.0.0.1:`port`; use it in a `with` statement, which returns when it is healthy.

    It runs in a process group and in an empty working directory of its own, behind a keeper (`_keeper.py`) that ends
    the group when we are gone, be it by SIGKILL.

    Args:
        command: what to run.
        environment: its whole environment.
        port: where it will listen; `/health` answers 200 there once it is ready.
        start_seconds: how long that may take.
        name: what errors call it.
        secret: never shown, whatever its log says.

    Raises:
        StageFailed: it ended before it was healthy, or was not in time; with the end of what it printed.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        port: int,
        *,
        start_seconds: float,
        name: str,
        secret: str = "",
    ) -> None:
        self.command, self.environment, self.port = list(command), dict(environment), port
        self.start_seconds, self.name, self._secret = start_seconds, name, secret
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "ServerProcess":
        with contextlib.ExitStack() as opened:
            folder = Path(
                opened.enter_context(tempfile.TemporaryDirectory(prefix="distill-", ignore_cleanup_errors=True))
            )
            (folder / "work").mkdir()
            self._log = folder / "log"
            with self._log.open("wb") as log:
                self._keeper = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        str(Path(__file__).with_name("_keeper.py")),
                        json.dumps({"command": self.command}),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=folder / "work",
                    env=self.environment,
                    start_new_session=True,  # Ctrl-C is for us; we end it in order
                )
            opened.callback(self._stop)
            self._wait_until_healthy()
            self._open = opened.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 and more for a signal."""
        return self._keeper.poll()

    def tail(self) -> str:
        """The end of what it printed."""
        try:
            text = self._log.read_text("utf-8", errors="replace")
        except OSError:
            return "its log is gone"
        text = text.replace(self._secret, "***") if self._secret else text
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-TAIL_LINES:])[-TAIL_LETTERS:] or "it said nothing"

    def _wait_until_healthy(self) -> None:
        end = time.monotonic() + self.start_seconds
        while not self._is_healthy():
            if self.exit_code is not None:
                raise StageFailed(
                    f"{self.name} ended with exit code {self.exit_code} before it was ready. The end of what it said:\n"
                    f"{self.tail()}"
                )
            if time.monotonic() > end:
                raise StageFailed(
                    f"{self.name} was not ready within {self.start_seconds:g} s (teacher.start_seconds). "
                    f"The end of what it said:\n{self.tail()}"
                )
            time.sleep(POLL_SECONDS)

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        """Closes the pipe, at which the keeper ends the group; its own grace is shorter than our patience."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def require_program(program: str, key: str) -> None:
    """Raises RecipeError when there is no such program to start."""
    import shutil

    if shutil.which(program) is None:
        raise RecipeError(
            f"{key}={program}: no such program. Name the Python of the environment that vLLM is installed in, such as "
            "/opt/vllm/bin/python."
        )
