"""table(): a group's models as a table for the terminal, 80 columns wide where the names allow it."""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from distill._command import visible, visible_lines
from distill.comparing.groups import Entry, Group, mean_of
from distill.comparing.verdict import verdicts
from distill.stages._number import Score, digits, size

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

NARROW = 110
"""Columns below which there is room for the task and the KL to the teacher alone."""
Column = tuple[str, Callable[[Entry], "str | Text"]]
"""The head, and what stands below it."""
_STYLES = {"teacher": "magenta", "baseline": "dim", "student": "bold"}


def table(group: Group, width: int) -> "Table":
    """One line a model: score, range and number of seeds, KL to the teacher, size, speed, proof, and a verdict."""
    from rich.table import Table
    from rich.text import Text

    gap = 2 if width >= NARROW else 1
    drawn = Table(box=None, pad_edge=False, collapse_padding=True, padding=(0, gap, 0, 0), header_style="dim")
    names = _names(len(group.recipes) > 1)
    figures = _figures(group, width)
    for head, _ in names:
        drawn.add_column(head, overflow="fold", min_width=1)
    for head, _ in figures:
        drawn.add_column(Text(visible_lines(head)), justify="right", vertical="bottom", no_wrap=True)
    drawn.add_column("", no_wrap=True)
    has_packages = any(entry.kind == "package" for entry in group.entries)
    before: Entry | None = None
    for entry, word in zip(group.entries, verdicts(group), strict=True):
        if before is not None and entry.kind == "student" and (has_packages or before.kind != "student"):
            drawn.add_row()
        before = entry
        cells = [cell(entry) for _, cell in (*names, *figures)]
        drawn.add_row(*cells, Text(word, style="green" if word == "best" else "dim"))
    return drawn


def _names(lettered: bool) -> list[Column]:
    from rich.text import Text

    def styled(text: str, entry: Entry) -> Text:
        return Text(visible(text), style=_STYLES.get(entry.kind, ""))

    letters: Column = ("", lambda entry: styled(" ".join(entry.recipes), entry))
    return [*([letters] if lettered else []), ("", lambda entry: styled(entry.name, entry))]


def _figures(group: Group, width: int) -> list[Column]:
    others = [score for score in group.scores if score.name != group.task]
    others = [score for score in others if width >= NARROW or score.name == "kl_to_teacher_nats"]
    task = group.score
    columns: list[Column] = [(_head(task, width), lambda entry: entry.cell(task)[0])]
    if group.has_ranges:
        columns.append(("range", lambda entry: entry.cell(task)[1]))
        columns.append(("seeds" if width >= NARROW else "n", lambda entry: str(entry.num_seeds(task.name) or "")))
    columns += [(_head(score, width), lambda entry, score=score: entry.cell(score)[0]) for score in others]
    columns.append(("size", lambda entry: size(mean_of(entry.bytes))))
    columns.append(("decode\ntok/s", lambda entry: digits(mean_of(entry.speed("decode")))))
    if group.has_proofs:
        columns.append(("veri-\nfied", _proof))
    return columns


def _head(score: Score, width: int) -> str:
    """Title over unit; where there is little room, about a word a line."""
    if width >= NARROW:
        return f"{score.title}\n{score.unit}"
    return "\n".join([*textwrap.wrap(score.title, 8), score.unit.replace("/", "/\n")])


def _proof(entry: Entry) -> "str | Text":
    from rich.text import Text

    if entry.verified is None:
        return ""
    return Text("✓", style="green") if entry.verified else Text("✗", style="bold red")
