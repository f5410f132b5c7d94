"""open_teacher(): the engine of the recipe's teacher, whichever option it is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from distill.example import Example
from distill.recipe import Recipe
from distill.stages.teach import Engine, Wanted


def open_teacher(
    recipe: Recipe, wanted: Wanted, examples: Sequence[Example], folder: Path, note: Callable[[str], None]
) -> AbstractContextManager[Engine]:
    """What `teach.ask` asks about `examples`. `folder` is the store's scratch folder, `note` tells the user something."""
    teacher = recipe.teacher
    match teacher.kind:
        case "hf":
            from distill.checkpoint import local_folder
            from distill.stages._local_teacher import open_local

            student = None
            if wanted.kind == "frozen_head":
                assert recipe.student.kind == "pretrained"
                student = local_folder(recipe.student.model, recipe.student.revision)
            return open_local(teacher, wanted, folder, student)
        case "file":
            from distill.answer_file import open_file

            return open_file(teacher, wanted, recipe.loss.kind, examples, note)
        case _:
            raise AssertionError(teacher.kind)
