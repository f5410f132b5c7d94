"""A 65B teacher and a 7B student on paper: store, node-hours and money. Prints the tables of docs/scale.md.

    python benchmarks/scale.py

Sizes come from the store's own encoding, times from 2 FLOP per parameter and token (6 in training) at the assumptions
below, which stand in the printed table too: change them here for another node or price.
"""

from distill.targets import Layout
from distill.targets.packing import packed_bytes
from distill.targets.sampled import sampled_bytes
from distill.targets.top_k import top_k_bytes

VOCAB_SIZE = 32_000
TEACHER, STUDENT = 65.2e9, 6.7e9
DISTINCT_IDS = 9.7
"""Of 50 systematic draws, as measured in docs/sampling.md."""
TEXT_BYTES, ROW_BYTES, ROW_TOKENS = 4.0, 45, 512
"""UTF-8 bytes of text per token; head, frame and index of a row, and its tokens."""
NODE_FLOPS = 8 * 989e12
"""Eight H100 SXM, dense bfloat16, as their data sheet says."""
SCORING_SHARE, TRAINING_SHARE = 0.45, 0.40
"""Of that rate: prefill of long batches; training with activation checkpointing off."""
GENERATED_PER_SECOND = 4_000
"""Tokens that the teacher writes on one node, all requests together: decoding is bound by memory, not by FLOP."""
DOLLARS_PER_NODE_HOUR = 20.0
TOKENS = (100e6, 1e9)


def main() -> None:
    """Prints sizes, then hours and money."""
    print("| targets | bytes per token | 100 M tokens | 1 B tokens |\n|---|---|---|---|")
    for name, size in sizes().items():
        whole = size + packed_bytes(1000, Layout("sampled", VOCAB_SIZE).id_bits) / 1000 + TEXT_BYTES
        whole += ROW_BYTES / ROW_TOKENS
        print(f"| {name} | {size:,.1f} ({whole:,.1f} with ids and text) | {cells(whole)} |")
    print("\n| step | 100 M tokens | 1 B tokens |\n|---|---|---|")
    for name, per_second in rates().items():
        hours = [tokens / per_second / 3600 for tokens in TOKENS]
        print(f"| {name} | " + " | ".join(f"{h:,.1f} h, ${h * DOLLARS_PER_NODE_HOUR:,.0f}" for h in hours) + " |")


def sizes() -> dict[str, float]:
    """Bytes per token of each kind of targets."""
    sampled = Layout("sampled", VOCAB_SIZE, 50)
    return {
        "sampled, 50 draws": sampled_bytes(round(1000 * DISTINCT_IDS), 1000, sampled) / 1000,
        "top 32 + tail": top_k_bytes(1000, Layout("top_k", VOCAB_SIZE, 32)) / 1000,
        "top 64 + tail": top_k_bytes(1000, Layout("top_k", VOCAB_SIZE, 64)) / 1000,
        "frozen head of 4,096 (LoRA students)": 2 * 4096 + 4.0,
        "dense": 2.0 * VOCAB_SIZE,
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
