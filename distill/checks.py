"""check(): everything that can be refused before anything is computed or written."""

import os
import shutil
from pathlib import Path
from typing import Any

from distill.checkpoint import read_config
from distill.data import Data
from distill.errors import DataError, RecipeError
from distill.example import Examples
from distill.recipe import STAGES, Recipe
from distill.workspace import store_folder

# A run of the smallest recipe leaves about this much; a full disk should be met here, not in the last stage.
LEAST_FREE_BYTES = 300_000_000

_loaded: list[tuple[Data, Examples]] = []


def check(recipe: Recipe) -> Examples:
    """The recipe's data, when nothing speaks against running it.

    Raises:
        RecipeError: a checkpoint, file or field is missing, options exclude each other for these checkpoints, a
            compression cannot be made of this student, or the output cannot be written. Nothing has been written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("Several processes (WORLD_SIZE > 1) are not supported yet; start one process.")
    _can_be_written(store_folder())
    teacher = None
    if recipe.teacher.kind == "hf":
        teacher = read_config(recipe.teacher.model, recipe.teacher.revision, "teacher.model")
    student = _student_config(recipe, teacher)
    examples = load(recipe.data)
    _answers_suffice(recipe, examples)
    # last, because these two load torch and transformers
    _tokenizers_fit(recipe)
    _compressions_fit(recipe, student)
    return examples


def load(data: Data) -> Examples:
    """The data's rows, read once in a process."""
    for known, examples in _loaded:
        if known == data:
            return examples
    _loaded.append((data, data.load()))
    return _loaded[-1][1]


def _student_config(recipe: Recipe, teacher: dict[str, Any] | None) -> dict[str, Any]:
    if recipe.student.kind == "pretrained":
        return read_config(recipe.student.model, recipe.student.revision, "student.model")
    return recipe.student.config(vocab_size=teacher["vocab_size"] if teacher else recipe.student.vocab_size)


def _compressions_fit(recipe: Recipe, student: dict[str, Any]) -> None:
    if STAGES.index(recipe.until) < STAGES.index("compress"):
        return
    for name, compression in recipe.compression.items():
        why = compression.refuse(student)
        if not why and recipe.student.kind == "pretrained" and Path(recipe.student.model).is_dir():
            why = compression.refuse_tokenizer(Path(recipe.student.model))
        if why:
            raise RecipeError(f"compression={name} cannot be made of this student: {why}")


def _tokenizers_fit(recipe: Recipe) -> None:
    """Targets speak of token ids: teacher and student must share them. A student from scratch takes the teacher's."""
    if recipe.teacher.kind == "none" or recipe.loss.kind == "text" or recipe.student.kind == "scratch":
        return
    from distill.encoding import load_tokenizer, template_hash, tokenizer_hash

    sides = [load_tokenizer(side.model, side.revision) for side in (recipe.teacher, recipe.student)]
    for what, of in (("tokenizers", tokenizer_hash), ("chat templates", template_hash)):
        if of(sides[0]) != of(sides[1]):
            raise RecipeError(
                f"The {what} of teacher and student differ: {recipe.teacher.model} ({of(sides[0])}) and "
                f"{recipe.student.model} ({of(sides[1])}).\nloss={recipe.loss.kind} compares distributions over the "
                "same tokens. Choose a student of the teacher's family, student=scratch (it takes the teacher's tokenizer), "
                "or loss=text, which needs the answers' text alone."
            )


def _answers_suffice(recipe: Recipe, examples: Examples) -> None:
    answered = sum(example.response is not None for example in examples.train)
    needs = (
        recipe.teacher.kind == "none" or recipe.teacher.responses == "data" or "baseline_no_teacher" in recipe.baselines
    )
    if needs and not answered:
        what = "baseline_no_teacher" if "baseline_no_teacher" in recipe.baselines else "this recipe"
        raise DataError(
            f"None of the {len(examples.train)} training rows has an answer of its own, and {what} learns from them. "
            "Name the field with data.response_field, or let the teacher answer with teacher.responses=generate."
        )
    if recipe.evaluation.kind == "exact_match":
        references = sum(example.response is not None for example in examples.evaluation["exact_match"])
        if not references:
            raise DataError(
                "No evaluation row has an answer to compare with (data.response_field in data.eval_path); "
                "evaluation=exact_match needs them."
            )


def _can_be_written(store: Path) -> None:
    """The store, and the folder that runs go into, exist or can be made, and have room."""
    for folder in (store, Path("outputs").resolve()):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise RecipeError(
                f"{folder} cannot be written ({there} {'is not writable' if there.is_dir() else 'is a file'}). "
                "Run from a folder of your own, or set hydra.run.dir and DISTILL_STORE."
            )
        free = shutil.disk_usage(there).free
        if free < LEAST_FREE_BYTES:
            raise RecipeError(
                f"{there} has {free / 1e6:.0f} MB of free space; a run needs {LEAST_FREE_BYTES / 1e6:.0f} MB at least. "
                "Free some, or set DISTILL_STORE to a folder on another disk."
            )
