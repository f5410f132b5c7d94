"""python -m distill.recipes: every recipe with its teacher, its student, its hardware and what the licences say."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from distill import shipped
from distill._recipe_list import Listed, listed
from distill.errors import DistillError, RecipeError
from distill.progress import console

PIPE_WIDTH = 200
"""Columns of a table that is not read in a terminal."""
SEARCH = "hydra.searchpath="


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 2 a wrong argument or a recipe that cannot be read."""
    try:
        _run(_arguments(arguments))
        sys.stdout.flush()
        code = 0
    except DistillError as error:
        console().print(str(error), style="red", markup=False, emoji=False)
        code = error.exit_code
    except BrokenPipeError:
        # the reader (head, less) has seen enough; without this, Python complains once more on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _run(args: argparse.Namespace) -> None:
    rows = [listed(name, file, args.search) for name, file in shipped.recipe_files(_folders(args.search)).items()]
    rows.sort(key=lambda row: row.name)
    if args.json:
        print(json.dumps([row.as_json() for row in rows], indent=2, ensure_ascii=False))
    else:
        _print_table(rows)


def _arguments(typed: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m distill.recipes",
        description="Lists the shipped recipes, and those of your own folders.",
    )
    parser.error = _refuse  # type: ignore[method-assign]
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
            _refuse(f"{text} is no argument of this command; your own recipes: {SEARCH}[file://FOLDER]")
    return args


def _refuse(message: str) -> NoReturn:
    raise RecipeError(f"{message}. See python -m distill.recipes --help")


def _folders(search: Sequence[str]) -> list[Path]:
    if not search:
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from distill._hydra import user_folders
    from distill._hydra_errors import explain

    with explain(search):
        return user_folders(search, OverridesParser.create())


def _print_table(rows: Sequence[Listed]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    class Output(Console):
        """Leaves a closed pipe to `main`; rich itself would exit with 1."""

        def on_broken_pipe(self) -> None:
            raise

    out = Output(highlight=False)
    if not out.is_terminal:
        out.width = max(out.width, PIPE_WIDTH)
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
