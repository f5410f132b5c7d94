"""show(): the comparison as text, readable at 80 columns and in a pipe."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill._command import visible
from distill.comparing.facts import APART, left_out_lines, notes, title_of
from distill.comparing.groups import Entry, Group, RecipeRuns
from distill.comparing.runs import LeftOut
from distill.comparing.verdict import MEANING, headlines, value_of, verdicts
from distill.stages._number import Score, digits, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

MOST_LEFT_OUT = 8
"""Lines of runs that are left out; the page has all of them."""
NARROW = 110
"""Columns below which the table holds the task and the KL to the teacher alone."""
_STYLES = {"teacher": "magenta", "baseline": "dim", "student": "bold"}


def show(groups: Sequence[Group], left_out: Sequence[LeftOut], out: "Console") -> None:
    """Prints each group's recipes, table and verdict, then what was left out."""
    if len(groups) > 1:
        _say(f"{len(groups)} groups. {APART}\n", out)
    for group in groups:
        _say(title_of(group, groups), out, "bold")
        if len(group.recipes) > 1:
            for recipe in group.recipes:
                _say(_legend(recipe, group), out, indent=3)
        out.print()
        out.print(_table(group, out.width))
        out.print()
        for line in headlines(group):
            _say(line, out)
        told = verdicts(group)
        words = [f"{word}: {meaning}." for word, meaning in MEANING.items() if word in told and word != "best"]
        for line in [*words, *notes(group)]:
            _say(line, out, "dim")
        out.print()
    lines = left_out_lines(left_out)
    if len(lines) > MOST_LEFT_OUT:
        lines = [*lines[: MOST_LEFT_OUT - 1], f"… and {len(lines) - MOST_LEFT_OUT + 1} more; the page says why."]
    for line in lines:
        _say(line, out, "dim", indent=2)


def _legend(recipe: RecipeRuns, group: Group) -> str:
    """`A  loss.kind=jsd  (seeds 0, 1, 2)`"""
    said = " ".join(f"{key}={value_of(recipe, key)}" for key in group.differences) or recipe.name
    word = "seed" if len(recipe.seeds) == 1 else "seeds"
    seeds = f"{word} {', '.join(map(str, recipe.seeds))}" if recipe.seeds else "seed unknown"
    teaches = f", the teacher of {', '.join(recipe.teaches)}" if recipe.teaches else ""
    return f"{recipe.letter:<2} {said}  ({seeds}{teaches})"


def _table(group: Group, width: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    several = any((found := entry.score(group.task)) and found.num_seeds > 1 for entry in group.entries)
    proofs = any(entry.verified is not None for entry in group.entries)
    packages = any(entry.kind == "package" for entry in group.entries)
    others = [score for score in group.scores if score.name != group.task]
    others = [score for score in others if width >= NARROW or score.name == "kl_to_teacher_nats"]
    table = Table(
        box=None, pad_edge=False, collapse_padding=True, padding=(0, 2 if width >= NARROW else 1, 0, 0),
        header_style="dim",
    )  # fmt: skip
    lettered = len(group.recipes) > 1
    if lettered:
        table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    heads = [_head(group.score, width), *(["range", "seeds" if width >= NARROW else "n"] if several else [])]
    heads += [_head(score, width) for score in others]
    heads += ["size", "decode\ntok/s", *(["veri-\nfied"] if proofs else []), ""]
    for head in heads:
        table.add_column(head, justify="left" if not head else "right", vertical="bottom", no_wrap=True)
    before: Entry | None = None
    for entry, word in zip(group.entries, verdicts(group), strict=True):
        if before is not None and entry.kind == "student" and (packages or before.kind != "student"):
            table.add_row()
        before = entry
        parts = [" ".join(entry.recipes), entry.name] if lettered else [entry.name]
        named = [Text(visible(part), style=_STYLES.get(entry.kind, "")) for part in parts]
        cells = [*_spread(entry, group.score, several), *(_other(entry, score) for score in others), *_costs(entry)]
        table.add_row(
            *named, *cells, *([_proof(entry)] if proofs else []), Text(word, style="green" if word == "best" else "dim")
        )
    return table


def _head(score: Score, width: int) -> str:
    """Title over unit; where there is little room, about a word a line."""
    if width >= NARROW:
        return f"{score.title}\n{score.unit}"
    return "\n".join([*textwrap.wrap(score.title, 8), score.unit.replace("/", "/\n")])


def _spread(entry: Entry, score: Score, several: bool) -> list[str]:
    """Mean, and where any recipe has several seeds: lowest to highest, number of seeds."""
    found = entry.score(score.name)
    cells = [score.show(found.mean if found else None)]
    if several:
        is_range = found is not None and found.num_seeds > 1
        cells.append(f"{score.show(found.low)}–{score.show(found.high)}" if found and is_range else "")
        # a teacher has none
        cells.append(str(found.num_seeds) if found and entry.kind != "teacher" else "")
    return cells


def _other(entry: Entry, score: Score) -> str:
    # the teacher's agreement with itself says nothing
    if entry.kind == "teacher" and score.name in {"kl_to_teacher_nats", "top1_agreement"}:
        return ""
    found = entry.score(score.name)
    return score.show(found.mean if found else None)


def _costs(entry: Entry) -> list[str]:
    decode = entry.speed("decode")
    return [size(entry.bytes.mean if entry.bytes else None), digits(decode.mean if decode else None)]


def _proof(entry: Entry) -> "Text":
    from rich.text import Text

    if entry.verified is None:
        return Text("")
    return Text("✓", style="green") if entry.verified else Text("✗", style="bold red")


def _say(text: str, out: "Console", style: str = "", indent: int = 0) -> None:
    """One paragraph, word for word; a terminal's lines break between words, a pipe's do not."""
    lines = [visible(line) for line in text.split("\n")]
    if out.is_terminal:
        lines = [
            textwrap.fill(
                line, out.width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
            )
            for line in lines
        ]
    out.print("\n".join(lines), style=style, markup=False, emoji=False, soft_wrap=True)
