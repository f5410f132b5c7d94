"""Source: a checkpoint that a recipe names, and what is known of it without its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill._teacher_checks import teachers_of
from distill.family.facts import Family, Published
from distill.family.known import published
from distill.family.reading import read_known
from distill.recipe import YOURS, Recipe

CLOSED: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
"""The shape that stands in for a model that nobody outside has seen."""


@dataclass(frozen=True)
class Source:
    """One checkpoint as the recipe names it. Two keys that name the same one share its tiny stand-in."""

    key: str
    """The recipe's key."""
    model: str
    revision: str | None
    config: dict[str, Any]
    known: tuple[Family, Published] | None = None
    """Facts, for a checkpoint that is not on this disk."""
    stands_in: bool = False
    """It stands for a closed model behind an endpoint, or for one still to be named: shape and tokenizer are ours."""

    @property
    def is_folder(self) -> bool:
        """Whether it is on this disk, so that its tokenizer is the real one."""
        return Path(self.model).is_dir()

    @property
    def name(self) -> str:
        """For a folder of its own and for messages: owner--name, or the folder's name."""
        return Path(self.model).name if self.is_folder else self.model.strip("/").replace("/", "--").replace(" ", "_")

    @property
    def who(self) -> str:
        """As people call it."""
        return Path(self.model).name if self.is_folder else self.model


def teacher_sources(recipe: Recipe) -> dict[str, Source]:
    """The recipe's key of each teacher that is rehearsed with a model → that model. Raises RecipeError."""
    found = {}
    for key, teacher in teachers_of(recipe).items():
        if teacher.kind in {"hf", "vllm"}:
            found[key] = source(f"{key}.model", teacher.model, teacher.revision)
        elif teacher.kind == "server":
            found[key] = _of_server(key, teacher)
        elif teacher.kind == "file" and teacher.tokenizer:
            found[key] = source(f"{key}.tokenizer", teacher.tokenizer, teacher.tokenizer_revision)
    return found


def student_source(recipe: Recipe) -> Source | None:
    """The checkpoint that the student starts from; None for one from scratch. Raises RecipeError."""
    student = recipe.student
    return source("student.model", student.model, student.revision) if student.kind == "pretrained" else None


def read(model: str, revision: str | None, asked_by: str) -> dict[str, Any]:
    """config.json as `read_known` has it; our own shape for a teacher that is still to be named. Raises RecipeError."""
    return CLOSED if model == YOURS else read_known(model, revision, asked_by)


def source(key: str, model: str, revision: str | None) -> Source:
    """What is known of `model`. Raises RecipeError when that is nothing, and names `key`."""
    known = None if Path(model).is_dir() else published(model)
    return Source(key, model, revision, read(model, revision, key), known, stands_in=model == YOURS)


def _of_server(key: str, teacher: Any) -> Source:
    if teacher.tokenizer:
        return source(f"{key}.tokenizer", teacher.tokenizer, teacher.tokenizer_revision)
    if published(teacher.model):
        return source(f"{key}.model", teacher.model, None)
    return Source(f"{key}.model", teacher.model, None, CLOSED, stands_in=True)
