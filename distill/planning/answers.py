"""Answers: how long those are that a teacher generates, which decides most of its hours."""

from dataclasses import dataclass
from typing import Any

from distill.data.known import DataSet, data_set
from distill.family.known import published
from distill.recipe import Recipe

THINKING = {"qwen3"}
"""Families whose chat models think before they answer, unless they are told not to."""
NO_THOUGHT = "/no_think"
"""In the prompt: Qwen3's own word for it."""
THOUGHT_TOKENS = 600
"""Of thinking about an everyday question: our estimate. Problems of mathematics take thousands."""


@dataclass(frozen=True)
class Answers:
    """Mean tokens, and the assumption in words."""

    tokens: float
    said: str


def answers_of(recipe: Recipe, own: float) -> Answers | None:
    """Of the teacher's generated answers; `own`: mean tokens of the data's. None: nothing is known of either."""
    known, most = data_set(str(getattr(recipe.data, "path", ""))), getattr(recipe.teacher, "max_new_tokens", None)
    mean, said = _without_thinking(recipe, known, own)
    if not mean:
        return None
    if _thinks(recipe):
        mean += THOUGHT_TOKENS
        said += f" and {THOUGHT_TOKENS} of thinking"
    tokens = min(mean, most or mean)
    return Answers(tokens, f"teacher: its answers are taken to be {said}, {tokens:.0f} tokens on average.")


def _without_thinking(recipe: Recipe, known: DataSet | None, own: float) -> tuple[float, str]:
    if known and known.generated_tokens and _follows_instructions(recipe):
        return known.generated_tokens, f"as long as chat models' to {known.hub_id}"
    return own, "as long as the data's own"


def _follows_instructions(recipe: Recipe) -> bool:
    """Whether the teacher is a chat model, as far as it is known; a served one is."""
    found = published(_model(recipe))
    if found is None:
        return recipe.teacher.kind == "server"
    family, facts = found
    # Qwen's base models have a chat template too: their names tell
    if family.name in THINKING:
        return not facts.model.endswith("-Base")
    return facts.has_chat_template and (family.name != "qwen2_5" or facts.model.endswith("-Instruct"))


def _thinks(recipe: Recipe) -> bool:
    found = published(_model(recipe))
    if found is None or found[0].name not in THINKING or not _follows_instructions(recipe):
        return False
    return NO_THOUGHT not in (getattr(recipe.data, "prompt_template", None) or "")


def _model(recipe: Recipe) -> str:
    teacher: Any = recipe.teacher
    return str(getattr(teacher, "model", ""))
