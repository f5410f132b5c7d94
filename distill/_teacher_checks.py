"""What can be refused of a recipe's teachers and targets before anybody is asked."""

from pathlib import Path
from typing import Any

from distill.checkpoint import positions_of
from distill.errors import DataError, RecipeError
from distill.example import Examples
from distill.family.reading import Read
from distill.option import is_meant_as_path
from distill.recipe import Recipe
from distill.stages._local_teacher import keep_ids
from distill.targets.layout import MAX_VOCAB
from distill.teacher import SERVED

MAX_DENSE_VOCAB = 8192


def teachers_of(recipe: Recipe) -> dict[str, Any]:
    """Each teacher under the key that a user writes for it."""
    if recipe.teacher.kind == "routed":
        return {f"teacher.teachers.{name}": teacher for name, teacher in recipe.teacher.teachers.items()}
    return {"teacher": recipe.teacher}


def teacher_configs(recipe: Recipe, read: Read) -> list[dict[str, Any]]:
    """config.json of every teacher that is a checkpoint; refuses one that is not there."""
    return [
        read(teacher.model, teacher.revision, f"{key}.model")
        for key, teacher in teachers_of(recipe).items()
        if teacher.kind == "hf"
    ]


def check_teachers(recipe: Recipe, teachers: list[dict[str, Any]], student: dict[str, Any]) -> None:
    """Targets, contexts and addresses, as far as configurations tell. Raises RecipeError."""
    for teacher in teachers:
        _targets_fit(recipe, teacher, student)
        _student_may_write(recipe, teacher)
    _served_can_give(recipe)
    for key, teacher in teachers_of(recipe).items():
        if teacher.kind == "file" and not Path(teacher.path).exists() and is_meant_as_path(teacher.path):
            raise DataError(
                f"{key}.path={teacher.path}: no such file. It takes a file, a folder, or a data set's hub id."
            )
        if teacher.kind == "file" and teacher.requests and not Path(teacher.requests).is_file():
            raise DataError(f"{key}.requests={teacher.requests}: no such file. It takes the .jsonl that was sent.")


def check_tokenizers(recipe: Recipe) -> None:
    """Targets speak of token ids: teacher and student must share them. A student from scratch takes the teacher's."""
    from distill.encoding import load_tokenizer, template_hash, tokenizer_hash

    if recipe.loss.kind == "text":
        return
    sides = dict.fromkeys(t.tokenizer_from for t in teachers_of(recipe).values() if t.tokenizer_from is not None)
    num_teachers = len(sides)
    if recipe.student.kind == "pretrained" and recipe.loss.kind != "aligned":
        # last: when it differs, all else agrees
        sides[recipe.student.model, recipe.student.revision] = None
    keeping = [teacher for teacher in teachers_of(recipe).values() if getattr(teacher, "always_keep", ())]
    if recipe.target_kind == "top_k":
        for teacher in keeping:
            keep_ids(teacher, load_tokenizer(*teacher.tokenizer_from))
    if len(sides) < 2:
        return
    first, *others = ((side[0], load_tokenizer(*side)) for side in sides)
    for what, of in (("tokenizers", tokenizer_hash), ("chat templates", template_hash)):
        for number, (name, other) in enumerate(others, start=1):
            if of(first[1]) == of(other):
                continue
            who = "teacher and student" if number == num_teachers else "two teachers"
            ways = "Choose models of one family, or loss=text, which needs the answers' text alone."
            if number == num_teachers:
                ways = (
                    "Choose a student of the teacher's family, student=scratch (it takes the teacher's tokenizer), "
                    "loss=aligned for other tokens, or loss=text, which needs the answers' text alone."
                )
            raise RecipeError(
                f"The {what} of {who} differ: {first[0]} ({of(first[1])}) and {name} ({of(other)}).\n"
                f"loss={recipe.loss.kind} compares what is said of the same tokens. {ways}"
            )


def check_routes(recipe: Recipe, examples: Examples) -> None:
    """Every row's teacher is one of the recipe's."""
    if recipe.teacher.kind != "routed":
        return
    named = {example.teacher for example in examples.train}
    unknown = sorted(str(name) for name in named - set(recipe.teacher.teachers))
    if unknown:
        raise DataError(
            f"data.teacher_field names {', '.join(unknown[:5])}; the recipe's teachers are "
            f"{', '.join(recipe.teacher.teachers)}. Add one under teacher.teachers, or name another field."
        )


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


def _student_may_write(recipe: Recipe, teacher: dict[str, Any]) -> None:
    """With on-policy training, the teacher reads what the student wrote: as far as its own positions go."""
    positions = positions_of(teacher)
    if recipe.training.on_policy and positions and recipe.training.max_length > positions:
        raise RecipeError(
            f"training.max_length={recipe.training.max_length}, but the teacher has {positions} positions, and with "
            "training.on_policy it reads what the student wrote. Lower it."
        )


def served_can_be_asked(recipe: Recipe) -> None:
    """What a served teacher needs of the environment; what it can do is found out by asking it. Raises RecipeError."""
    from distill.served.child import require_program
    from distill.stages._served_plan import key_of

    for key, teacher in teachers_of(recipe).items():
        if teacher.kind == "server":
            key_of(teacher, key)
        if teacher.kind == "vllm":
            require_program(teacher.python, f"{key}.python")


def _served_can_give(recipe: Recipe) -> None:
    """What the recipe wants of a served teacher, against what any of them can give."""
    from distill.stages._served_plan import refuse_targets

    for key, teacher in teachers_of(recipe).items():
        if teacher.kind in SERVED:
            refuse_targets(teacher, recipe.target_kind, getattr(recipe.loss, "temperature", 1.0), key)
