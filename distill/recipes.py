"""python -m distill.recipes: every recipe with its teacher, its student, its hardware and what the licences say."""

import argparse
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill import shipped
from distill._command import Parser, output, run_and_exit, say_error
from distill._recipe_list import Listed, listed
from distill.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200
"""Least columns of a table that is not read in a terminal."""
WIDEST = 10_000
SEARCH = "hydra.searchpath="


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 2 a wrong argument or a recipe that cannot be read (the others are still
    listed), 130 interrupted."""
    run_and_exit(lambda: _run(_arguments(arguments)))


def _run(args: argparse.Namespace) -> int:
    rows, broken = _read(shipped.recipe_files(_folders(args.search)), args.search)
    if args.json:
        print(json.dumps([row.as_json() for row in rows], indent=2, ensure_ascii=False))
    else:
        _print(rows)
    for words in broken:
        say_error(words)
    return RecipeError.exit_code if broken else 0


def _read(files: Mapping[str, Path], search: Sequence[str]) -> tuple[list[Listed], list[str]]:
    """(the recipes by name, a line for each that cannot be read)."""
    rows, broken = [], []
    for name, file in files.items():
        try:
            rows.append(listed(name, file, search))
        except RecipeError as error:
            said = " ".join(str(error).split())
            broken.append(textwrap.shorten(said if str(file) in said else f"{file}: {said}", 300, placeholder=" …"))
    return sorted(rows, key=lambda row: row.name), broken


def _arguments(typed: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "distill.recipes",
        description="Lists the shipped recipes, and those of your own folders.",
    )
    parser.add_argument(
        "search",
        metavar="hydra.searchpath=[file://FOLDER]",
        nargs="*",
        help="folders with recipes of your own, written as for python -m distill",
    )
    parser.add_argument("--json", action="store_true", help="everything known of each recipe, licences word for word")
    args = parser.parse_args(typed)
    for text in args.search:
        if not text.startswith(SEARCH):
            parser.error(f"{text} is no argument of this command; your own recipes: {SEARCH}[file://FOLDER]")
    return args


def _folders(search: Sequence[str]) -> list[Path]:
    if not search:
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from distill._hydra import user_folders
    from distill._hydra_errors import explain

    with explain(search):
        return user_folders(search, OverridesParser.create())


def _print(rows: Sequence[Listed]) -> None:
    """A line for each recipe where one is wide enough, in a pipe always; else a few lines for each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("recipe", "teacher → student", "hardware", "licences", "what it does"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, (row.name, _pair(row), row.hardware or "–", row.verdict, row.summary)))
    out = output(PIPE_WIDTH)
    needed = out.measure(table, options=out.options.update(max_width=WIDEST)).maximum
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = max(out.width, needed)
    if needed <= out.width:
        out.print(table)
    else:
        for row in rows:
            _print_narrow(row, out)
    out.print("\nOne of them: python -m distill recipe=NAME rehearse=true. The licences' words: --json", markup=False)


def _print_narrow(row: Listed, out: "Console") -> None:
    """Name, then facts and summary, wrapped between words."""
    facts = [_pair(row), row.hardware, "" if row.verdict == "ok" else row.verdict]
    out.print(row.name, style="bold", markup=False, emoji=False)
    for text in (" · ".join(filter(None, facts)), row.summary):
        for line in textwrap.wrap(text, max(out.width - 2, 20), break_on_hyphens=False, break_long_words=False):
            out.print(f"  {line}", markup=False, emoji=False, soft_wrap=True)


def _pair(row: Listed) -> str:
    return f"{' and '.join(row.teachers) or '–'} → {row.student}"


if __name__ == "__main__":
    main()
