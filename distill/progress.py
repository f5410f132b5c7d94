"""One line a stage and a bar for what takes longer; quiet where nobody watches."""

import contextlib
import io
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]


def console() -> "Console":
    """The terminal: standard error, so that what a command prints can be piped. There, text breaks between words."""
    from rich.console import Console

    class Terminal(Console):
        """Wraps plain text itself: soft_wrap leaves that to the terminal, which breaks words."""

        def print(self, *objects: Any, **how: Any) -> None:
            if self.is_terminal and len(objects) == 1 and isinstance(objects[0], str):
                objects = (wrapped(objects[0], self.width),)
            super().print(*objects, **how)

    return Terminal(stderr=True, highlight=False, soft_wrap=True)


def wrapped(text: str, width: int) -> str:
    """`text` with its long lines broken between words. A line with a command stays whole: it is there to be copied."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip())) + "  " * line.lstrip().startswith("* ")
        if len(line) <= width or "python -m" in line:
            lines.append(line)
        else:
            lines += textwrap.wrap(
                line, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
            )
    return "\n".join(lines) + "\n" * text.endswith("\n")


def write_any_letter() -> None:
    """What the encoding of standard output lacks is written as "?"; standard error does so by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def quiet_libraries() -> None:
    """Keeps from the terminal what libraries say of each other: nobody who runs a recipe can do anything about it."""
    # a kernel that it would fetch from the network; its own one is what we want (see runtime/bnb.py)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT asks transformers by a name that the latter has given up
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    logging.getLogger("huggingface_hub.utils._http").addFilter(_HubWaits())


class _HubWaits(logging.Filter):
    """One line in place of two for each of five trials; the error that follows says what failed."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        text = record.getMessage()
        if " thrown while requesting " in text:
            return False
        if not text.startswith("Retrying in "):
            return True
        record.msg, first, self.said = "The hub does not answer; trying for half a minute.", not self.said, True
        return first


@contextlib.contextmanager
def bar(label: str, total: int) -> Iterator[Advance]:
    """A progress bar over `total` units; the block calls what it is given with the units done since."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = console()
    columns = (TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not terminal.is_terminal or "DISTILL_QUIET" in os.environ
    with Progress(*columns, console=terminal, transient=True, disable=hidden) as progress:
        task = progress.add_task(label, total=total)
        yield lambda units=1: progress.update(task, advance=units)
