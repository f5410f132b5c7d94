"""Facts: the models and rows of a recipe, from what lies here or is known. Nothing but a config.json is downloaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.family.known import published
from distill.family.reading import read_known, refuse_unknown_architecture
from distill.planning.model import BYTES, Model, model_of
from distill.planning.volume import Volume, volume_of
from distill.recipe import Recipe
from distill.student.pretrained import config_with_layers

HERE = {"hf", "vllm"}
"""Kinds of teacher whose weights we load, or have loaded."""


@dataclass(frozen=True)
class Facts:
    """What does not depend on the hardware."""

    teachers: dict[str, tuple[Any, Model | None]]
    """Stage → the teacher asked there, and its model where its weights are ours to load."""
    student: Model
    volume: Volume
    notes: tuple[str, ...]


def facts_of(recipe: Recipe) -> Facts:
    """Reads what the recipe names.

    Raises:
        RecipeError: a checkpoint or its configuration cannot be found, or is of no architecture that can be counted.
        DataError: the data cannot be read.
    """
    asked: dict[str, Any] = {"teach": recipe.teacher}
    if recipe.teacher.kind == "routed":
        asked = {f"teach {name}": one for name, one in sorted(recipe.teacher.teachers.items())}
    teachers: dict[str, tuple[Any, Model | None]] = {
        stage: (one, _checkpoint(one.model, one.revision, f"{key_of(stage)}.model"))
        if one.kind in HERE
        else (one, None)
        for stage, one in asked.items()
    }
    first = next((model for _, model in teachers.values() if model), None)
    notes = [
        f"{stage}: {getattr(one, 'model', one.kind)} runs elsewhere; its memory, time and price are not planned here."
        for stage, (one, model) in teachers.items()
        if model is None and one.kind == "server"
    ]
    if len(asked) > 1:
        notes.append(f"teach: the rows are taken to be divided evenly among {len(asked)} teachers.")
    return Facts(teachers, _student(recipe, first), volume_of(recipe), tuple(notes))


def key_of(stage: str) -> str:
    """The recipe's key of the teacher that is asked in this stage: of "teach math" it is "teacher.teachers.math"."""
    _, _, route = stage.partition(" ")
    return f"teacher.teachers.{route}" if route else "teacher"


def _student(recipe: Recipe, teacher: Model | None) -> Model:
    student = recipe.student
    if student.kind == "scratch":
        shares = teacher is not None and recipe.loss.kind != "aligned"
        vocab = _tokens_of(recipe) if shares else student.vocab_size
        return model_of("the student", student.config(vocab or student.vocab_size), "float32", on_disk=True)
    if student.layers is None:
        return _checkpoint(student.model, student.revision, "student.model")
    whole = read_known(student.model, student.revision, "student.model")
    few = config_with_layers(whole, student.layers)
    return model_of(student.model, few, _stored(student.model, whole), on_disk=Path(student.model).is_dir())


def _tokens_of(recipe: Recipe) -> int | None:
    """Tokens of the tokenizer that a student from scratch takes over: its vocabulary, without the teacher's padding."""
    source = recipe.teacher.tokenizer_from
    if source is None:
        return None
    if (Path(source[0]) / "tokenizer_config.json").is_file():
        from distill.encoding import load_tokenizer

        return len(load_tokenizer(source[0]))
    known = published(source[0])
    if known:
        return known[1].num_tokens
    return read_known(*source, "teacher.model").get("vocab_size")


def _checkpoint(name: str, revision: str | None, asked_by: str) -> Model:
    config = read_known(name, revision, asked_by)
    refuse_unknown_architecture(config, asked_by)
    return model_of(name, config, _stored(name, config), on_disk=Path(name).is_dir())


def _stored(name: str, config: dict[str, Any]) -> str:
    known = published(name)
    if known and not Path(name).is_dir():
        return known[1].stored_dtype
    said = config.get("dtype") or config.get("torch_dtype") or "float32"
    return said if said in BYTES else "float32"


def bytes_to_download(model: Model) -> float:
    """Of a published checkpoint: all that it stores, which may be more than what is loaded; 0 where it lies here."""
    if model.on_disk:
        return 0.0
    known = published(model.name)
    return float(model.stored_bytes + (known[1].not_loaded * BYTES[model.stored] if known else 0))


def bytes_to_convert(model: Model) -> float:
    """Of safetensors that are written beside a download which is .bin files alone; 0 for every other checkpoint."""
    known = published(model.name)
    return bytes_to_download(model) if known and known[1].as_bin else 0.0
