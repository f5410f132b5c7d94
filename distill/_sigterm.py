"""SIGTERM as Ctrl-C: what SLURM, torchrun, `timeout` and `kill` send shortly before they kill."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Whatever ends in order at Ctrl-C does so for this."""

    def __str__(self) -> str:
        return "Ended by SIGTERM."


def raise_at_sigterm() -> None:
    """From now on the first SIGTERM raises `Terminated` in the main thread; later ones change nothing.

    A cluster sends several: to every process of a job step, and once more through torchrun to its children.
    """
    ours, came = os.getpid(), False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if os.getpid() != ours:  # a forked child has nothing to say, and nobody to say it to
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not came:
            came = True
            raise Terminated

    _set(handle)


def ignore_sigterm() -> None:
    """From now on this process ends by itself: what was to be said is said, and its exit code stands."""
    _set(signal.SIG_IGN)


def _set(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    # Python takes handlers from the main thread only
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
