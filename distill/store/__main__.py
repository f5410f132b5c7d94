"""python -m distill.store: what is in the store of responses, whether it is whole, and what nobody needs any more."""

import argparse
from pathlib import Path

from distill._command import Parser, output, run_and_exit
from distill.errors import RecipeError
from distill.workspace import store_folder

PIPE_WIDTH = 160
"""Columns of a table that is not read in a terminal."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 a store is damaged, 2 a wrong argument, 130 interrupted."""
    run_and_exit(lambda: _run(_arguments(arguments)))


def _run(args: argparse.Namespace) -> int:
    from distill.responses import SUMMARY
    from distill.store.check import check
    from distill.store.listing import is_store, print_list, stores_below
    from distill.store.prune import prune
    from distill.store.show import show

    folder = args.store or store_folder()
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder. Name a store of responses, or the folder of all artifacts.")
    out = output(PIPE_WIDTH, soft_wrap=True)
    if args.prune:
        return prune(folder, args.runs or [], unfinished=args.unfinished, really=args.yes, out=out)
    if args.verify:
        if is_store(folder):
            return check(folder, out)
        stores = list(stores_below(folder))
        finished = [store for store in stores if (store / SUMMARY).exists()]
        for store in (store for store in stores if store not in finished):
            out.print(f"{store}: not checked; it is unfinished, or an older distill made it.", markup=False)
        return max([check(store, out) for store in finished], default=0)
    if is_store(folder):
        show(folder, rows=args.rows, tokenizer=args.tokenizer, out=out)
    else:
        print_list(folder, out)
    return 0


def _arguments(typed: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "distill.store",
        description="Shows what teachers have answered: all stores of responses, or one of them.",
    )
    parser.add_argument(
        "store",
        metavar="STORE",
        nargs="?",
        type=Path,
        help="folder of one store of responses, or of all artifacts (default: DISTILL_STORE, else outputs/store)",
    )
    parser.add_argument("--rows", metavar="N", type=int, default=3, help="rows to show of one store (default: 3)")
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", type=Path, help="the teacher's checkpoint: shows tokens as text instead of ids"
    )
    parser.add_argument("--verify", action="store_true", help="read every row; exit code 1 if any is damaged")
    parser.add_argument("--prune", action="store_true", help="what no run's record names; deleted with --yes only")
    parser.add_argument("--yes", action="store_true", help="with --prune: really delete")
    parser.add_argument(
        "--unfinished", action="store_true", help="with --prune: also what interrupted runs left and could go on from"
    )
    parser.add_argument(
        "--runs",
        metavar="FOLDER",
        type=Path,
        action="append",
        help="with --prune: more runs, beside those next to the store and in outputs/; may be given again",
    )
    args = parser.parse_args(typed)
    if args.rows < 0:
        parser.error(f"--rows {args.rows}: it must be 0 or more")
    if args.prune and args.verify:
        parser.error("--prune and --verify: only one of them at a time")
    for name in ("yes", "runs", "unfinished"):
        if getattr(args, name) and not args.prune:
            parser.error(f"--{name} means nothing without --prune")
    return args


if __name__ == "__main__":
    main()
