"""show(): the comparison as text, readable at 80 columns and in a pipe."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill._command import visible
from distill.comparing.facts import APART, judged_line, left_out_lines, notes, title_of
from distill.comparing.groups import Group, RecipeRuns
from distill.comparing.runs import LeftOut
from distill.comparing.table import table
from distill.comparing.verdict import MEANING, brief, headlines, telling, value_of, verdicts

if TYPE_CHECKING:
    from rich.console import Console

MOST_LEFT_OUT = 8
"""Lines of runs that are left out; the page has all of them."""


def show(groups: Sequence[Group], left_out: Sequence[LeftOut], out: "Console") -> None:
    """Prints each group's recipes, table and verdict, then what was left out."""
    if len(groups) > 1:
        _say(f"{len(groups)} groups. {APART}", out)
        out.print()
    for group in groups:
        _say(title_of(group), out, "bold")
        if judged := judged_line(group, groups):
            _say(judged, out, "dim")
        if len(group.recipes) > 1:
            for recipe in group.recipes:
                _say(_legend(recipe, group), out, indent=3)
            if telling(group) != list(group.differences):
                _say(f"They differ in {len(group.differences)} keys; the page shows all of them.", out, "dim")
        out.print()
        out.print(table(group, out.width))
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
    said = " ".join(f"{key}={brief(value_of(recipe, key))}" for key in telling(group)) or recipe.name
    word = "seed" if len(recipe.seeds) == 1 else "seeds"
    seeds = f"{word} {', '.join(map(str, recipe.seeds))}" if recipe.seeds else "seed unknown"
    teaches = f", the teacher of {', '.join(recipe.teaches)}" if recipe.teaches else ""
    return f"{recipe.letter:<2} {said}  ({seeds}{teaches})"


def _say(text: str, out: "Console", style: str = "", indent: int = 0) -> None:
    """One paragraph, word for word; a terminal's lines break between words, a pipe's do not."""
    text = visible(text)
    if out.is_terminal:
        text = textwrap.fill(
            text, out.width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
    out.print(text, style=style, markup=False, emoji=False, soft_wrap=True)
