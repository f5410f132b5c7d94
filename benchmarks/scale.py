"""65B and 176B teachers on paper: store, node-hours and money. Prints the tables of docs/scale.md.

    python benchmarks/scale.py            the first two tables: 100 M and 1 B tokens on one node
    python benchmarks/scale.py --plan     the recipes' own plans on 8, 64 and 512 H100

Sizes come from the store's own encoding, times from 2 FLOP per parameter and token (6 in training) at the assumptions
below, which stand in the printed table too: change them here for another node or price.
"""

import sys

from distill.planning.store_size import ROW_BYTES, target_bytes, text_bytes

VOCAB_SIZE = 32_000
TEACHER, STUDENT = 65.2e9, 6.7e9
ROW_TOKENS = 512
NODE_FLOPS = 8 * 989e12
"""Eight H100 SXM, dense bfloat16, as their data sheet says."""
SCORING_SHARE, TRAINING_SHARE = 0.45, 0.40
"""Of that rate: prefill of long batches; training with activation checkpointing off."""
GENERATED_PER_SECOND = 4_000
"""Tokens that the teacher writes on one node, all requests together: decoding is bound by memory, not by FLOP."""
DOLLARS_PER_NODE_HOUR = 20.0
TOKENS = (100e6, 1e9)


PLANNED = ("llama65b_to_7b", "bloom176b_to_560m")
DEVICES = (8, 64, 512)
DOLLARS_PER_GPU_HOUR = DOLLARS_PER_NODE_HOUR / 8


def main() -> None:
    """Prints sizes, then hours and money; with --plan, what `python -m distill.plan` says of two recipes."""
    if "--plan" in sys.argv[1:]:
        for recipe in PLANNED:
            print_plans(recipe)
        return
    print("| targets | bytes per token | 100 M tokens | 1 B tokens |\n|---|---|---|---|")
    for name, size in sizes().items():
        whole = size + text_bytes(VOCAB_SIZE) + ROW_BYTES / ROW_TOKENS
        print(f"| {name} | {size:,.1f} ({whole:,.1f} with ids and text) | {cells(whole)} |")
    print("\n| step | 100 M tokens | 1 B tokens |\n|---|---|---|")
    for name, per_second in rates().items():
        hours = [tokens / per_second / 3600 for tokens in TOKENS]
        print(f"| {name} | " + " | ".join(f"{h:,.1f} h, ${h * DOLLARS_PER_NODE_HOUR:,.0f}" for h in hours) + " |")


def overrides(recipe: str, devices: int) -> list[str]:
    """A recipe on so many H100: a served teacher on each node, and a batch with at least one row for each GPU."""
    batch = max(64, devices)
    return [
        f"recipe={recipe}",
        "teacher=vllm",
        "teacher.tensor_parallel_size=8",
        f"teacher.extra_arguments=['--data-parallel-size={devices // 8}']",
        f"training.batch_size={batch}",
        "training.gradient_accumulation_steps=1",
    ]


def print_plans(recipe: str) -> None:
    """One row for each number of GPUs."""
    print(
        "| GPUs | teach | train | all, node-hours, price | fullest GPU | training is bound by |\n"
        "|---|---|---|---|---|---|"
    )
    for devices in DEVICES:
        print(planned(recipe, devices))
    print()


def planned(recipe: str, devices: int) -> str:
    """A row: hours of teaching and training, money, the fullest GPU, and what bounds the training."""
    from distill import _hydra
    from distill.planning import plan
    from distill.recipe import parse

    asked = parse(_hydra.compose(overrides(recipe, devices)).config)
    made = plan(asked, f"{devices}xh100-80gb", DOLLARS_PER_GPU_HOUR)
    teach = sum(stage.seconds for stage in made.stages if stage.name == "teach") / 3600
    train = [stage for stage in made.stages if stage.name.startswith("train")]
    fullest = max(made.stages, key=lambda stage: stage.memory.total)
    return (
        f"| {devices} | {teach:.2f} h | {sum(stage.seconds for stage in train) / 3600:.2f} h "
        f"| {made.hours:.2f} h, {made.node_hours:.1f}, ${made.price:,.0f} "
        f"| {fullest.name}: {fullest.memory.total / 1e9:.0f} of 80 GB | {train[-1].bound} |"
    )


def sizes() -> dict[str, float]:
    """Bytes per token of each kind of targets."""
    return {
        "sampled, 50 draws": target_bytes("sampled", VOCAB_SIZE, 50),
        "top 32 + tail": target_bytes("top_k", VOCAB_SIZE, 32),
        "top 64 + tail": target_bytes("top_k", VOCAB_SIZE, 64),
        "frozen head of 4,096 (LoRA students)": target_bytes("frozen_head", VOCAB_SIZE, 4096),
        "dense": target_bytes("dense", VOCAB_SIZE, 0),
    }


def rates() -> dict[str, float]:
    """Tokens per second of one node."""
    return {
        "teacher scores given text": SCORING_SHARE * NODE_FLOPS / (2 * TEACHER),
        "teacher writes and scores": 1 / (1 / GENERATED_PER_SECOND + 2 * TEACHER / (SCORING_SHARE * NODE_FLOPS)),
        "student trains one epoch from the store": TRAINING_SHARE * NODE_FLOPS / (6 * STUDENT),
        "the same with the teacher beside it": TRAINING_SHARE * NODE_FLOPS / (6 * STUDENT + 2 * TEACHER),
    }


def cells(bytes_per_token: float) -> str:
    return " | ".join(f"{tokens * bytes_per_token / 1e9:,.1f} GB" for tokens in TOKENS)


if __name__ == "__main__":
    main()
