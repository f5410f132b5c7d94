"""Whether the weights that a recipe names can be loaded, before a teacher works for hours: all but reading them."""

import json
from pathlib import Path
from typing import Any

from distill._teacher_checks import teachers_of
from distill.errors import DataError, RecipeError, first_line
from distill.recipe import Recipe


def check_weights(recipe: Recipe, *, may_be_elsewhere: bool = False) -> None:
    """Of checkpoints in folders; what the hub gives, its client has verified.

    Args:
        may_be_elsewhere: a folder with a configuration and no weights at all passes, for a rehearsal needs no more.

    Raises:
        RecipeError: files are missing or cut short, weights do not belong to their config.json, or the student's are
            quantised.
    """
    named = [(f"{key}.model", teacher.model) for key, teacher in teachers_of(recipe).items() if teacher.kind == "hf"]
    student: Any = recipe.student
    if student.kind == "pretrained":
        named.append(("student.model", student.model))
    for key, folder in dict.fromkeys(named):
        there = [*Path(folder).glob("*.safetensors"), *Path(folder).glob("pytorch_model*.bin")]
        if Path(folder).is_dir() and (there or not may_be_elsewhere):
            _check(key, Path(folder))


def _check(key: str, folder: Path) -> None:
    file = folder / "config.json"
    quantised = json.loads(file.read_text("utf-8")).get("quantization_config") if file.is_file() else None
    if quantised:
        # its layers are known only to the library that made them
        if key == "student.model":
            raise RecipeError(
                f"{key}={folder}: its weights are quantised ({quantised.get('quant_method')}), and a student is "
                "trained from float weights.\nName the checkpoint that it was made of; adapter=qlora quantises it for "
                "training."
            )
        return
    from distill.runtime._causal_lm import read_causal_lm
    from distill.runtime.bnb import quiet

    try:
        with quiet():
            read_causal_lm(folder, device_map="meta")
    except DataError as error:
        raise RecipeError(f"{key}={error}") from None
    except Exception as error:  # safetensors, transformers and the file system have a type for each
        raise RecipeError(
            f"{key}={folder}: its weights cannot be loaded ({first_line(error)}).\n"
            "Needed: a config.json that transformers can build, and every *.safetensors file that its index names, "
            "whole."
        ) from None
