"""The score table for the terminal, at most 100 columns wide."""

from collections.abc import Mapping
from typing import Any

from distill.stages._number import TO_TEACHER, Score, digits, scores_of, size

_KIND_STYLE = {"teacher": "magenta", "baseline": "dim", "student": "bold", "package": ""}


def print_table(scores: Mapping[str, Any], console: Any = None) -> None:
    """Prints scores.json: a line for each model with scores, KL to the teacher, bytes, tokens/s and the proof.

    `console` is a rich Console; None makes one for the terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    models = list(scores.get("models") or [])
    if not models:
        console.print(f"{scores.get('recipe', 'The run')}: nothing has been scored yet.", markup=False)
        return
    columns = _narrowed(scores_of(models, scores.get("task")), scores.get("task"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=26)
    for column in columns:
        table.add_column(f"{column.title}\n{column.unit}", justify="right", vertical="bottom")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("decode\ntokens/s", justify="right", no_wrap=True)
    table.add_column("veri-\nfied", justify="center", no_wrap=True)
    previous = None
    for model in models:
        if previous is not None and model.get("kind") != previous and "student" not in (model.get("kind"), previous):
            table.add_section()
        previous = model.get("kind")
        style = _KIND_STYLE.get(str(model.get("kind")), "")
        table.add_row(
            Text(str(model["name"]), style=style),
            *(column.cell(model) for column in columns),
            size(model.get("bytes")),
            digits((model.get("speed") or {}).get("decode_tokens_per_second")),
            {True: Text("✓", style="green"), False: Text("✗", style="bold red")}.get(model.get("verified"), Text("")),
        )
    console.print(table, width=min(console.width, 100))


def _narrowed(columns: list[Score], task: str | None) -> list[Score]:
    """The scores that a terminal has room for: the task and its kin, and the KL; all of them are in the report."""
    kin = [column for column in columns if column.name == task or (task and column.name.startswith(task))]
    kin = kin or [column for column in columns if column.name not in TO_TEACHER]
    return [*kin[:4], *(column for column in columns if column.name == "kl_to_teacher_nats")]
