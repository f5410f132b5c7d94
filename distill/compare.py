"""python -m distill.compare: which recipe is best, by how much, and is that more than its seeds differ?"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from distill._command import Parser, output, run_and_exit, visible
from distill.errors import StageFailed

PIPE_WIDTH = 160
"""Columns of a table that is not read in a terminal."""
EPILOG = """\
Runs that differ in nothing but their seed are one recipe: mean, lowest and
highest of each score. Only recipes that were judged on the same rows in the
same way are compared. Only the run folders are read: record.jsonl, recipe.yaml,
scores.json, metrics.jsonl.

examples
  python -m distill -m loss=forward_kl,jsd seed=0,1,2
  python -m distill.compare outputs/quickstart
  python -m distill.compare outputs/mine/2026-* --html mine.html
"""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 compared, 2 a wrong argument or nothing to compare, 130 interrupted."""
    run_and_exit(lambda: _run(_arguments(arguments)))


def suggestion(runs: Sequence[Path]) -> str | None:
    """What to say at the end of a sweep that left `runs`; None where there is nothing to compare."""
    scored = [run for run in runs if (run / "scores.json").is_file() and not (run / "rehearsal.md").is_file()]
    if len(scored) < 2:
        return None
    folder = Path(os.path.commonpath(scored))
    here = Path.cwd()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    return f"Compare them: python -m distill.compare {shlex.quote(str(shown))}"


def _run(args: argparse.Namespace) -> int:
    from distill.comparing.groups import group_runs
    from distill.comparing.page import refuse_foreign, write_page
    from distill.comparing.runs import DEFAULT, find_runs, nothing_left

    page = args.html or (None if args.json else Path("compare.html"))
    if page is not None:
        refuse_foreign(page)
    runs, left_out = find_runs(args.folders or [DEFAULT])
    if not runs:
        raise nothing_left(left_out)
    groups, unwritten = group_runs(runs), None
    if page is not None:
        try:
            write_page(groups, left_out, page)
        except OSError as error:  # what was asked for can still be read here
            unwritten = error
    if args.json:
        from distill.comparing.as_json import as_json

        print(as_json(groups, left_out))
    else:
        from distill.comparing.terminal import show

        show(groups, left_out, output(PIPE_WIDTH))
    if unwritten:
        raise StageFailed(f"{page}: {unwritten.strerror}. --html FILE writes the page elsewhere.")
    if not args.json:
        output(PIPE_WIDTH).print(f"Page: {visible(str(page))}", markup=False, soft_wrap=True)
    return 0


def _arguments(typed: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "distill.compare",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares finished runs: a table here, and one HTML page that needs nothing\nfrom elsewhere.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "folders",
        metavar="RUN_OR_FOLDER",
        nargs="*",
        type=Path,
        help="a run, or a folder with runs at any depth (default: outputs)",
    )
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="where the page goes (default: compare.html in this folder)"
    )
    parser.add_argument("--json", action="store_true", help="the same facts for programs; a page with --html only")
    return parser.parse_intermixed_args(typed)


if __name__ == "__main__":
    main()
