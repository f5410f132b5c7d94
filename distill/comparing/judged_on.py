"""judged_on(): what a run's models were judged on. Scores are compared where it is the same, and nowhere else."""

from collections.abc import Mapping
from typing import Any

from distill.comparing.recipe_keys import Keys

TRAINING_ROWS = ("rows", "labelled_rows", "num_rows", "problem_seed", "teacher_field")
"""Keys of `data` that say which rows are trained on, and no more."""
SHARED_SOURCE = ("path", "split", "shuffle_seed")
"""Those that decide evaluation rows only where these are cut from the training file."""


def judged_on(keys: Keys, scores: Mapping[str, Any], task: str | None) -> Keys:
    """The task, how it was measured, and the rows: their hash in scores.json.

    A run of an older distill recorded none; the keys of its recipe that choose evaluation rows take its place, unless
    `group_runs` knows the hash from other runs with such keys.
    """
    measured = {key: value for key, value in keys.values.items() if key.startswith("evaluation.")}
    left_out = {"evaluation.speed", "evaluation.samples"}
    if measured.get("evaluation.kind") == "bits_per_byte":
        left_out.add("evaluation.max_new_tokens")  # of the samples, which are not scored
        measured["training.max_length"] = keys.values.get("training.max_length")
    measured = {key: value for key, value in measured.items() if key not in left_out}
    rows = scores.get("evaluation_rows")
    if isinstance(rows, str):
        return Keys({"task": task, "rows": rows, **measured}, keys.defaults)
    data = keys.below("data.")
    not_these = TRAINING_ROWS + (SHARED_SOURCE if data.values.get("eval_path") is not None else ())
    chosen = {f"data.{key}": value for key, value in data.values.items() if key not in not_these}
    return Keys({"task": task, "rows": "not recorded", **measured, **chosen}, keys.defaults)
