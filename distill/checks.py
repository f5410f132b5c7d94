"""check(): everything that can be refused before anything is computed or written."""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill._encoding_checks import check_templates
from distill._licences import check_licences
from distill._process_checks import check_processes
from distill._shape_checks import (
    check_adapter,
    check_labels,
    check_packing,
    check_parallel,
    check_schedule,
    num_steps,
    rows_to_learn,
    warm_up_cut,
)
from distill._teacher_checks import (
    check_routes,
    check_teachers,
    check_tokenizers,
    served_can_be_asked,
    teacher_configs,
    teachers_of,
)
from distill._weights_check import check_weights
from distill.checkpoint import positions_of
from distill.data import Data
from distill.errors import DataError, RecipeError
from distill.evaluation.exact_match import final_answer
from distill.example import Examples
from distill.family.reading import Read, read_stored, refuse_unknown_architecture
from distill.family.text_part import text_part
from distill.recipe import Recipe
from distill.student.pretrained import config_with_layers
from distill.workspace import store_folder

# A run of the smallest recipe leaves about this much; a full disk should be met here, not in the last stage.
LEAST_FREE_BYTES = 300_000_000

_loaded: list[tuple[Data, Examples]] = []
_cut: list[tuple[Any, Examples]] = []


def check(recipe: Recipe) -> Examples:
    """The recipe's data, when nothing speaks against running it.

    Raises:
        RecipeError: a checkpoint, file or field is missing, options exclude each other for these checkpoints, a
            compression cannot be made of this student, or the output cannot be written. Nothing has been written.
    """
    check_licences(recipe)
    check_processes(recipe)
    _can_be_written(store_folder())
    student = check_configs(recipe, read_stored)
    served_can_be_asked(recipe)
    examples, num_rows = load(recipe.data), None
    if recipe.is_plain_text:
        examples, num_rows = _in_windows(recipe, examples)
    num_rows = check_rows(recipe, examples, num_rows)
    # last, because these load torch and transformers
    check_tokenizers(recipe)
    check_templates(examples, _tokenizers_of(recipe))
    check_models(recipe, student, reads_hub=True)
    check_weights(recipe)
    cut = warm_up_cut(recipe, num_steps(recipe, num_rows))
    return replace(examples, notes=(*examples.notes, cut)) if cut else examples


def check_configs(recipe: Recipe, read: Read) -> dict[str, Any]:
    """What config.json says of lengths, layers and targets; returns the student's. `read` finds one. Needs no torch.

    Raises:
        RecipeError: a checkpoint is missing, or does not go with what the recipe asks of it.
    """
    teachers = teacher_configs(recipe, read)
    student = _student_config(recipe, teachers[0] if teachers else None, read)
    _lengths_fit(recipe, student)
    check_teachers(recipe, teachers, student)
    for key, teacher in teachers_of(recipe).items():
        if teacher.kind == "vllm":
            check_parallel(teacher, key, read)
    return student


def check_rows(recipe: Recipe, examples: Examples, num_rows: int | None = None) -> int:
    """How many rows an epoch has: of plain text that is not in rows yet, `num_rows`.

    Raises RecipeError: nothing to learn, nothing to compare with, nobody to ask.
    """
    _answers_suffice(recipe, examples)
    check_labels(examples, recipe.data)
    check_routes(recipe, examples)
    if num_rows is None:
        num_rows = rows_to_learn(recipe, len(examples.train), sum(row.response is not None for row in examples.train))
    check_schedule(recipe, num_rows)
    return num_rows


def check_models(recipe: Recipe, student: dict[str, Any], *, elsewhere: bool = False, reads_hub: bool = False) -> None:
    """What takes the architecture itself to know: the adapter's layers, the compressions. Imports transformers.

    Args:
        elsewhere: the recipe is meant for another machine, so what bitsandbytes can do here decides nothing.
        reads_hub: whether a tokenizer on the hub may be loaded to ask whether a compression can express it.

    Raises:
        RecipeError: transformers has no such architecture, the adapter names no layer of it, or a compression cannot
            be made of it.
    """
    if recipe.student.kind == "pretrained":
        refuse_unknown_architecture(student, "student.model")
    layers = getattr(recipe.student, "layers", None)
    check_adapter(recipe, config_with_layers(student, layers) if layers else student)
    check_packing(recipe, student)
    _compressions_fit(recipe, student, elsewhere=elsewhere, reads_hub=reads_hub)


def load(data: Data) -> Examples:
    """The data's rows, read once in a process."""
    for known, examples in _loaded:
        if known == data:
            return examples
    _loaded.append((data, data.load()))
    return _loaded[-1][1]


def _in_windows(recipe: Recipe, examples: Examples) -> tuple[Examples, int | None]:
    """The examples with training texts in rows of training.max_length, and how many rows a plan expects where no
    tokenizer is there yet: a student's own is made of the texts, and its rows with it."""
    from distill.encoding import load_tokenizer
    from distill.planning.volume import volume_of
    from distill.windows import in_windows

    if any(teacher.kind == "file" for teacher in teachers_of(recipe).values()):
        return examples, None  # its rows are joined to the texts as they are
    sides = _tokenizers_of(recipe)
    if not sides:
        return examples, volume_of(recipe).rows
    read = [positions_of(text_part(config)) for config in teacher_configs(recipe, read_stored)]
    read += [getattr(teacher, "max_model_len", None) for teacher in teachers_of(recipe).values()]
    max_length = min(recipe.training.max_length, *(most for most in read if most), 1 << 30)
    wanted = (recipe.data, sides, max_length)
    for known, cut in _cut:
        if known == wanted:
            return cut, None
    rows, tokens = in_windows(examples.train, [load_tokenizer(*side) for side in sides], max_length)
    said = (
        f"{len(examples.train):,} texts are {len(rows):,} rows of {max_length:,} tokens at most (training.max_length), "
        f"{tokens:,} tokens in all: longer ones go on in the next row."
    )
    _cut.append((wanted, replace(examples, train=rows, notes=(*examples.notes, said))))
    return _cut[-1][1], None


def _tokenizers_of(recipe: Recipe) -> list[tuple[str, str | None]]:
    """The checkpoints whose tokenizers render the data's prompts."""
    sides = [teacher.tokenizer_from for teacher in teachers_of(recipe).values() if teacher.tokenizer_from]
    if recipe.student.kind == "pretrained":
        sides.append((recipe.student.model, recipe.student.revision))
    return list(dict.fromkeys(sides))


def _student_config(recipe: Recipe, teacher: dict[str, Any] | None, read: Read) -> dict[str, Any]:
    if recipe.student.kind == "pretrained":
        _refuse_unmerged(Path(recipe.student.model))
        return read(recipe.student.model, recipe.student.revision, "student.model")
    # some architectures keep the text model's shape one level down
    shape = teacher.get("text_config", teacher) if teacher else {}
    return recipe.student.config(vocab_size=shape.get("vocab_size", recipe.student.vocab_size))


def _refuse_unmerged(folder: Path) -> None:
    if folder.is_dir() and (folder / "adapter_config.json").is_file() and (folder / "config.json").is_file():
        raise RecipeError(
            f"student.model={folder} has an adapter that is not merged (adapter_config.json), and it would be neither "
            "trained nor kept.\nMerge it with PEFT's merge_and_unload(), save the model, and name that folder."
        )


def _lengths_fit(recipe: Recipe, student: dict[str, Any]) -> None:
    """What config.json says of layers and positions, against what the recipe asks of them."""
    positions = positions_of(student)
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
    layers = getattr(recipe.student, "layers", None)
    has = student.get("num_hidden_layers") or student.get("n_layer") or student.get("num_layers")
    wrong = [layer for layer in layers or () if has and not 0 <= layer < has]
    if wrong:
        assert has is not None and recipe.student.kind == "pretrained"
        raise RecipeError(f"student.layers={layers}: {recipe.student.model} has layers 0 to {has - 1}, not {wrong}.")


def _compressions_fit(recipe: Recipe, student: dict[str, Any], *, elsewhere: bool, reads_hub: bool) -> None:
    if "compress" not in recipe.stages:
        return
    source = _tokenizer_of_student(recipe)
    for name, compression in recipe.compression.items():
        why = None if elsewhere and name.startswith("bnb_") else compression.refuse(student)
        if not why and source is not None and Path(source[0]).is_dir():
            why = compression.refuse_tokenizer(Path(source[0]))
        # every other runtime reads the tokenizer as transformers does, and refuses none
        elif not why and source is not None and reads_hub and compression.runtime == "llama.cpp":
            why = _refused_of_hub(compression, source, student if recipe.student.kind == "pretrained" else None)
        if why:
            raise RecipeError(f"compression={name} cannot be made of this student: {why}")


def _tokenizer_of_student(recipe: Recipe) -> tuple[str, str | None] | None:
    """The checkpoint that it is of; None for a tokenizer that we train ourselves, which is known to be right."""
    if recipe.student.kind == "pretrained":
        return recipe.student.model, recipe.student.revision
    # a student from scratch takes the teacher's
    return None if recipe.loss.kind == "aligned" else recipe.teacher.tokenizer_from


def _refused_of_hub(compression: Any, source: tuple[str, str | None], config: dict[str, Any] | None) -> str | None:
    """What `compression` says of a tokenizer on the hub, as transformers saves it beside a student of `config`.

    None: a student from scratch, which has a row for every token.
    """
    from distill.encoding import load_tokenizer

    with tempfile.TemporaryDirectory() as name:
        load_tokenizer(*source).save_pretrained(name)
        if config:
            (Path(name) / "config.json").write_text(json.dumps(config))
        return compression.refuse_tokenizer(Path(name))


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
    answers = [example.response for example in examples.evaluation["exact_match"] if example.response]
    by_answer = "evaluate" in recipe.stages and getattr(recipe.evaluation, "compare", "text") == "final_answer"
    if by_answer and not any(map(final_answer, answers)):
        raise DataError(
            f"evaluation.compare=final_answer looks for what follows ####, and none of the {len(answers)} answers of "
            "evaluation rows has it: whatever a model says would be wrong. Use evaluation.compare=text."
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
