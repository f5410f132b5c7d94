"""One line a stage and a bar for what takes longer; quiet where nobody watches."""

import contextlib
import os
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]


def console():
    """The terminal: standard error, so that what a command prints can be piped."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


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
