"""What `python -m distill.plan`, `.recipes`, `.store` and their like share: how they parse, print and end."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from distill.errors import DistillError, RecipeError
from distill.progress import console, quiet_libraries, write_any_letter

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""All control characters but tab and newline; embeddings, overrides and isolates of direction; lone surrogates."""


class Parser(argparse.ArgumentParser):
    """Refuses with a RecipeError that names the command's help. Flags are not abbreviated: --y must delete nothing."""

    def __init__(self, command: str, **arguments: Any):
        super().__init__(prog=f"python -m {command}", allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message}. See {self.prog} --help")


def run_and_exit(run: Callable[[], int]) -> NoReturn:
    """Exits with what `run` returns, a DistillError's own code, 130 when interrupted, 1 for faults of disk or ours."""
    quiet_libraries()
    write_any_letter()
    try:
        code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except DistillError as error:
        say_error(str(error))
        code = error.exit_code
    except BrokenPipeError:
        code = reader_left()
    except OSError as error:
        say_error(f"{error.strerror} ({error.filename})")
        code = 1
    except Exception as error:
        say_error(fault_of_ours(error))
        code = 1
        if debugging():
            traceback.print_exc()
    sys.exit(code)


def reader_left() -> int:
    """The exit code where standard output is closed: the reader (head, less) has seen enough."""
    # without this, Python complains once more on its way out
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def say_error(text: str) -> None:
    """In red on standard error, word for word. It may quote a file: a stage's name, a folder's."""
    console().print(visible_lines(text), style="red", markup=False, emoji=False)


def fault_of_ours(error: Exception) -> str:
    """What is said of an error that nobody foresaw."""
    return f"{type(error).__name__}: {error}\nThis is a fault of distill. DISTILL_DEBUG=1 shows where it happened."


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get("DISTILL_DEBUG") == "1"


def visible(text: str) -> str:
    """`visible_lines`, with tabs and the ends of lines written out too: one line."""
    return visible_lines(text).replace("\t", "\\t").replace("\n", "\\n")


def visible_lines(text: str) -> str:
    """`text` with what steers a terminal written out: a file, or a model's answer, may hold escape sequences.

    What letters are joined with (Persian, emoji) stays; the marks that reverse the order of text do not, as they make a
    line read otherwise than it is.
    """
    return _STEERS.sub(lambda found: repr(found[0])[1:-1], text)


def output(pipe_width: int, *, soft_wrap: bool = False) -> "Console":
    """Standard output; what is piped is not cut at 80 columns but has `pipe_width`, unless COLUMNS says another."""
    from rich.console import Console

    class Output(Console):
        """Leaves a closed pipe to `run_and_exit`; rich itself would exit with 1."""

        def on_broken_pipe(self) -> None:
            raise

    out = Output(highlight=False, soft_wrap=soft_wrap)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = max(out.width, pipe_width)
    return out
