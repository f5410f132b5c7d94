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
from distill.targets.layout import MAX_VOCAB
from distill.teacher import SERVED
from distill.workspace import store_folder

# A run of the smallest recipe leaves about this much; a full disk should be met here, not in the last stage.
LEAST_FREE_BYTES = 300_000_000

MAX_DENSE_VOCAB = 8192

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
    teachers = [
        read_config(teacher.model, teacher.revision, f"{key}.model")
        for key, teacher in _teachers(recipe).items()
        if teacher.kind in {"hf", "vllm"}
    ]
    student = _student_config(recipe, teachers[0] if teachers else None)
    _lengths_fit(recipe, student)
    for teacher in teachers:
        _targets_fit(recipe, teacher, student)
    _served_can_be_asked(recipe)
    examples = load(recipe.data)
    _answers_suffice(recipe, examples)
    _routes_lead_somewhere(recipe, examples)
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


def _teachers(recipe: Recipe) -> dict[str, Any]:
    """Each teacher under the key that a user writes for it."""
    if recipe.teacher.kind == "routed":
        return {f"teacher.teachers.{name}": teacher for name, teacher in recipe.teacher.teachers.items()}
    return {"teacher": recipe.teacher}


def _student_config(recipe: Recipe, teacher: dict[str, Any] | None) -> dict[str, Any]:
    if recipe.student.kind == "pretrained":
        return read_config(recipe.student.model, recipe.student.revision, "student.model")
    # some architectures keep the text model's shape one level down
    shape = teacher.get("text_config", teacher) if teacher else {}
    return recipe.student.config(vocab_size=shape.get("vocab_size", recipe.student.vocab_size))


def _lengths_fit(recipe: Recipe, student: dict[str, Any]) -> None:
    """What config.json says of layers and positions, against what the recipe asks of them."""
    positions = student.get("max_position_embeddings") or student.get("n_positions")
    if positions and recipe.training.max_length > positions:
        raise RecipeError(
            f"training.max_length={recipe.training.max_length}, but the student has {positions} positions. "
            "Lower it, or raise student.max_position_embeddings of a student from scratch."
        )
    if positions and recipe.evaluation.max_new_tokens >= positions:
        raise RecipeError(
            f"evaluation.max_new_tokens={recipe.evaluation.max_new_tokens} leaves no room for a prompt in the "
            f"student's {positions} positions."
        )
    layers, has = getattr(recipe.student, "layers", None), student.get("num_hidden_layers") or student.get("n_layer")
    wrong = [layer for layer in layers or () if has and not 0 <= layer < has]
    if wrong:
        assert has is not None and recipe.student.kind == "pretrained"
        raise RecipeError(f"student.layers={layers}: {recipe.student.model} has layers 0 to {has - 1}, not {wrong}.")


def _targets_fit(recipe: Recipe, teacher: dict[str, Any], student: dict[str, Any]) -> None:
    """Sizes that decide whether a kind of targets makes sense for these two checkpoints."""
    vocab_size = teacher.get("vocab_size")
    if vocab_size is None:
        return
    if vocab_size > MAX_VOCAB:
        raise RecipeError(f"The teacher has {vocab_size:,} tokens; targets can be stored for {MAX_VOCAB:,} at most.")
    if recipe.target_kind == "dense" and vocab_size > MAX_DENSE_VOCAB:
        raise RecipeError(
            f"teacher.targets=dense keeps {2 * vocab_size:,} bytes for each token of this teacher ({vocab_size:,} "
            f"tokens; dense is for {MAX_DENSE_VOCAB:,} at most). Use sampled (forward_kl) or top_k."
        )
    if recipe.target_kind != "frozen_head":
        return
    size = student.get("hidden_size") or student.get("n_embd") or 0
    if size >= vocab_size:
        raise RecipeError(
            f"teacher.targets=frozen_head keeps {size:,} numbers for each token, the whole distribution "
            f"{vocab_size:,}. Use teacher.targets=dense."
        )
    if student.get("final_logit_softcapping"):
        raise RecipeError(
            "teacher.targets=frozen_head: the student caps its logits, so no average of its head is exact."
        )


def _served_can_be_asked(recipe: Recipe) -> None:
    """What a served teacher needs from the recipe and the environment; what it can do is found out by asking it."""
    from distill.served.child import require_program
    from distill.stages._served_plan import key_of, refuse_targets

    for key, teacher in _teachers(recipe).items():
        if teacher.kind == "server":
            key_of(teacher, key)
        if teacher.kind == "vllm":
            require_program(teacher.python, f"{key}.python")
        if teacher.kind in SERVED:
            refuse_targets(teacher, recipe.target_kind, getattr(recipe.loss, "temperature", 1.0), key)


def _compressions_fit(recipe: Recipe, student: dict[str, Any]) -> None:
    if STAGES.index(recipe.until) < STAGES.index("compress"):
        return
    # a student from scratch takes the teacher's tokenizer; one that we train ourselves is known to be right
    theirs = recipe.teacher.tokenizer_from
    source = recipe.student.model if recipe.student.kind == "pretrained" else theirs[0] if theirs else None
    for name, compression in recipe.compression.items():
        why = compression.refuse(student)
        if not why and source is not None and Path(source).is_dir():
            why = compression.refuse_tokenizer(Path(source))
        if why:
            raise RecipeError(f"compression={name} cannot be made of this student: {why}")


def _tokenizers_fit(recipe: Recipe) -> None:
    """Targets speak of token ids: teacher and student must share them. A student from scratch takes the teacher's."""
    if recipe.loss.kind in {"text", "aligned"}:
        return
    theirs = [teacher.tokenizer_from for teacher in _teachers(recipe).values()]
    sides = {side[0]: side for side in theirs if side is not None}
    if recipe.student.kind == "pretrained":
        sides[recipe.student.model] = (recipe.student.model, recipe.student.revision)
    if len(sides) < 2:
        return
    from distill.encoding import load_tokenizer, template_hash, tokenizer_hash

    # the student last: when it differs, all else agrees
    tokenizers = {name: load_tokenizer(*side) for name, side in sides.items()}
    first, *others = tokenizers
    for what, of in (("tokenizers", tokenizer_hash), ("chat templates", template_hash)):
        for other in others:
            if of(tokenizers[first]) != of(tokenizers[other]):
                raise RecipeError(
                    f"The {what} of teacher and student differ: {first} ({of(tokenizers[first])}) and "
                    f"{other} ({of(tokenizers[other])}).\nloss={recipe.loss.kind} compares distributions over the "
                    "same tokens. Choose a student of the teacher's family, student=scratch (it takes the teacher's "
                    "tokenizer), loss=aligned for other tokens, or loss=text, which needs the answers' text alone."
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
    if not any(example.response for example in examples.evaluation["exact_match"]):
        raise DataError(
            "No evaluation row has an answer to compare with (data.response_field in data.eval_path); "
            f"evaluation={recipe.evaluation.kind} needs them."
        )


def _routes_lead_somewhere(recipe: Recipe, examples: Examples) -> None:
    if recipe.teacher.kind != "routed":
        return
    named = {example.teacher for example in examples.train}
    unknown = sorted(str(name) for name in named - set(recipe.teacher.teachers))
    if unknown:
        raise DataError(
            f"data.teacher_field names {', '.join(unknown[:5])}; the recipe's teachers are "
            f"{', '.join(recipe.teacher.teachers)}. Add one under teacher.teachers, or name another field."
        )


def _can_be_written(store: Path) -> None:
    """The store exists or can be made, and has room. The run folder is Hydra's to make, and to refuse."""
    there = next(path for path in (store, *store.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(
            f"{store} cannot be written ({there} {'is not writable' if there.is_dir() else 'is a file'}). "
            "Run from a folder of your own, or set DISTILL_STORE and hydra.run.dir."
        )
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE_BYTES:
        raise RecipeError(
            f"{there} has {free / 1e6:.0f} MB of free space; a run needs {LEAST_FREE_BYTES / 1e6:.0f} MB at least. "
            "Free some, or set DISTILL_STORE to a folder on another disk."
        )
