"""python -m distill.plan: what a recipe needs and costs on given hardware, before anything is downloaded."""

import argparse
import json

from distill._command import Parser, run_and_exit
from distill.errors import RecipeError
from distill.progress import console

OWN = ("price_per_gpu_hour",)
"""Arguments in Hydra's form that are the plan's own."""
EPILOG = """\
hardware is a number and a device of the table, as in 8xh100-80gb or
64xa100-80gb (nodes have the usual number of devices); `cpu` is this machine's,
cpu-64gb one of so much memory. Any other device is described in place, quoted
twice, for the shell and for Hydra, here as in a run:
  "hardware='4xmine:memory_gb=48,bf16_tflops=180,bandwidth_gb=900'"
link_gb=32, per_node=4 and host_gb=128 may follow, and may change a device of
the table: "hardware='2xrtx4090-24gb:host_gb=128'". bandwidth_gb is of its
memory, link_gb to its neighbours in one direction, both in GB a second;
host_gb its share of its node's own memory. Without hardware=, the recipe's own
counts, else this machine.

examples
  python -m distill.plan recipe=llama65b_to_7b
  python -m distill.plan recipe=my.yaml training.max_length=4096 adapter=lora
  python -m distill.plan recipe=llama65b_to_7b hardware=64xh100-80gb \\
    price_per_gpu_hour=2.5 --json
"""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 planned, whether it fits or not; 2 a wrong recipe or argument; 130 interrupted."""
    run_and_exit(lambda: _run(_arguments(arguments)))


def _run(args: argparse.Namespace) -> int:
    from distill import _hydra
    from distill.recipe import parse

    own, overrides = _own(args.overrides)
    composed = _hydra.compose(overrides, args.config_dir)
    for line in composed.dropped:
        console().print(line, markup=False, emoji=False)
    recipe, price = parse(composed.config), _price(own.get("price_per_gpu_hour"))
    # last, as it loads torch
    from distill.planning import plan
    from distill.planning.together import together

    made = together(
        plan(recipe, price_per_gpu_hour=price),
        lambda more: plan(parse(_hydra.compose([*overrides, *more], args.config_dir).config)),
    )
    if args.json:
        print(json.dumps(made.as_dict(), indent=1))
    else:
        from distill.planning.show import show

        show(made)
    return 0


def _own(typed: list[str]) -> tuple[dict[str, str], list[str]]:
    """(the plan's own arguments, the others, which are the recipe's)."""
    own = [text for text in typed if text.lstrip("+").startswith(tuple(f"{name}=" for name in OWN))]
    return dict(text.lstrip("+").split("=", 1) for text in own), [_quoted(text) for text in typed if text not in own]


def _quoted(text: str) -> str:
    """A described hardware= as Hydra takes it, whether quoted or not; everything else as it stands."""
    key, _, value = text.partition("=")
    return f"{key}='{value}'" if key == "hardware" and "=" in value and value[0] not in "'\"" else text


def _price(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise RecipeError(f"price_per_gpu_hour={text}: needs a number, such as 2.5.") from None


def _arguments(typed: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "distill.plan",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Says what a recipe needs and costs, stage by stage, before anything is\ndownloaded.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help="recipe=NAME, hardware=…, price_per_gpu_hour=…, any override"
    )
    parser.add_argument("--json", action="store_true", help="bytes, seconds and FLOPs as JSON")
    parser.add_argument("--config-dir", metavar="FOLDER", help="options and recipes of your own, as for distill itself")
    return parser.parse_intermixed_args(typed)


if __name__ == "__main__":
    main()
