"""python -m distill.megatron CHECKPOINT_FOLDER OUT_FOLDER: a Megatron-LM GPT-2 as transformers loads it."""

import argparse
from pathlib import Path

from distill._command import Parser, run_and_exit


def main(typed: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 the disk failed, 2 a wrong argument or checkpoint, 130 interrupted."""
    run_and_exit(lambda: _run(_arguments(typed)))


def _run(args: argparse.Namespace) -> int:
    from distill.megatron.convert import convert

    made = convert(
        args.checkpoint,
        args.target,
        tokenizer=args.tokenizer,
        heads=args.heads,
        num_tokens=args.vocab_size,
        iteration=args.iteration,
    )
    shape = made.config
    print(
        f"{args.target}: GPT-2 of {shape['n_layer']} layers, {shape['n_embd']} wide, {shape['n_head']} heads, "
        f"{shape['vocab_size']} tokens, {made.weight_bytes / 1e9:.2f} GB.\n"
        f"Read: checkpoint_version {made.version}, {made.num_ranks} tensor-parallel ranks, {made.num_stages} pipeline "
        f"stages."
    )
    if not made.tokenizer_files:
        print("It has no tokenizer yet: run with --tokenizer FOLDER, or copy GPT-2's tokenizer files into it.")
    return 0


def _arguments(typed: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "distill.megatron",
        description="Converts a GPT-2 checkpoint of Megatron-LM into a folder that transformers and distill load.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT_FOLDER",
        type=Path,
        help="the folder that Megatron saved to, one of its iter_… folders, or a single model_optim_rng.pt",
    )
    parser.add_argument("target", metavar="OUT_FOLDER", type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        type=Path,
        help="its tokenizer: files are copied, the padded vocabulary is cut to its size (default: 50257, no files)",
    )
    parser.add_argument("--heads", metavar="N", type=int, help="attention heads, for old files that do not say it")
    parser.add_argument("--vocab-size", metavar="N", type=int, help="tokens without the padding, without --tokenizer")
    parser.add_argument("--iteration", metavar="N", type=int, help="which iter_… to take (default: the latest)")
    args = parser.parse_args(typed)
    for name in ("heads", "vocab_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be 1 or more")
    return args


if __name__ == "__main__":
    main()
