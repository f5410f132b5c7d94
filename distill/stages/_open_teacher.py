"""open_teacher(): the engine of the recipe's teacher, whichever option it is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from distill.example import Example
from distill.recipe import Recipe
from distill.stages.teach import Engine, Wanted
from distill.teacher import Teacher
from distill.workspace import store_folder


def open_teacher(
    teacher: Teacher,
    recipe: Recipe,
    wanted: Wanted,
    examples: Sequence[Example],
    folder: Path,
    note: Callable[[str], None],
) -> AbstractContextManager[Engine]:
    """What `teach.ask` asks about `examples`. `folder` is the store's scratch folder, `note` tells the user a line."""
    journals, on_policy = store_folder() / "journals", recipe.training.on_policy > 0
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
        case "server":
            from distill.stages._served_teacher import open_server

            return open_server(teacher, wanted, examples, journals, note, on_policy=on_policy)
        case "vllm":
            from distill.stages._vllm_teacher import open_vllm

            return open_vllm(teacher, wanted, examples, journals, note, on_policy=on_policy)
        case _:
            raise AssertionError(teacher.kind)
