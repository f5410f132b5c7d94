"""Whether two ways of making a student differ in quality: the same questions, the same seeds, paired bootstrap.

    python benchmarks/paired_bootstrap.py RUN_A,RUN_A2,… RUN_B,RUN_B2,…

takes run folders, as many on each side, the seeds in the same order, evaluated with exact_match. Prints both scores and
the 95 % interval of their difference over 10,000 resamples of the questions (all seeds of a question stay together:
they answer the same question). "No difference" where the interval holds 0.
"""

import json
import sys
from pathlib import Path

import numpy as np

from distill._hydra import compose
from distill.recipe import parse

RESAMPLES = 10_000


def main(a: str, b: str) -> None:
    """Prints one line for each side and one for the difference."""
    sides = [np.stack([correct(Path(run)) for run in side.split(",")]) for side in (a, b)]
    if sides[0].shape != sides[1].shape:
        sys.exit(f"Found {sides[0].shape} and {sides[1].shape} runs and questions; both sides need the same.")
    for name, right_RQ in zip("AB", sides, strict=True):
        each = ", ".join(f"{run.mean():.4f}" for run in right_RQ)
        print(f"{name}: {right_RQ.mean():.4f} ({each})")
    difference_Q = (sides[0] - sides[1]).mean(axis=0)
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(difference_Q), size=(RESAMPLES, len(difference_Q)))
    low, high = np.percentile(difference_Q[chosen].mean(axis=1), [2.5, 97.5])
    verdict = "no difference" if low <= 0 <= high else "a difference"
    print(f"A - B: {difference_Q.mean():+.4f}, 95 % interval {low:+.4f} to {high:+.4f}: {verdict}")


def correct(run: Path) -> np.ndarray:
    """1.0 for each evaluation question that the run's student answered right, else 0.0."""
    recipe = parse(compose([f"recipe={run / 'recipe.yaml'}"]).config)
    lines = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
    made = next(line["made"] for line in lines if line.get("name") == "evaluate student")
    # the record names the artifact as seen from where the run was started, the folder that holds outputs/
    answers = json.loads((run.resolve().parents[2] / made / "answers.json").read_text())["exact_match"]
    rows = recipe.data.load().evaluation["exact_match"]
    assert recipe.evaluation.kind == "exact_match"
    judge = recipe.evaluation.correct
    return np.array([judge(said, row.response or "") for said, row in zip(answers, rows, strict=True)], dtype=float)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
