"""python -m distill.recipes: every recipe with its teacher, its student, its hardware and what the licences say."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from distill import shipped
from distill._command import Parser, output, run_and_exit
from distill._recipe_list import Listed, listed

PIPE_WIDTH = 200
"""Columns of a table that is not read in a terminal."""
SEARCH = "hydra.searchpath="


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 2 a wrong argument or a recipe that cannot be read, 130 interrupted."""
    run_and_exit(lambda: _run(_arguments(arguments)))


def _run(args: argparse.Namespace) -> int:
    rows = [listed(name, file, args.search) for name, file in shipped.recipe_files(_folders(args.search)).items()]
    rows.sort(key=lambda row: row.name)
    if args.json:
        print(json.dumps([row.as_json() for row in rows], indent=2, ensure_ascii=False))
    else:
        _print_table(rows)
    return 0


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


def _print_table(rows: Sequence[Listed]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = output(PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("recipe", "teacher → student", "hardware", "licences", "what it does"):
        table.add_column(title, overflow="fold", no_wrap=title in {"recipe", "hardware"})
    for row in rows:
        pair = f"{' and '.join(row.teachers) or '–'} → {row.student}"
        table.add_row(*map(Text, (row.name, pair, row.hardware or "–", row.verdict, row.summary)))
    out.print(table)
    out.print("\nOne of them: python -m distill recipe=NAME rehearse=true. The licences' words: --json", markup=False)


if __name__ == "__main__":
    main()
