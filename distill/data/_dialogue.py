"""Chat rows: each assistant turn that is learnt, with all that was said before it as its prompt."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import DataError
from distill.example import Example

ASSISTANT = "assistant"
WHO_ASKS = frozenset({"user", "system", "developer", "tool", "function", "ipython"})
"""Speakers that a dialogue without an answer may have."""
CALLS = ("tool_calls", "function_call")
"""Fields of a turn, in OpenAI's layout, with what is said in no text."""
Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Layout:
    """How a row keeps its turns: the field with the list, and in a turn the fields of who speaks and what is said."""

    messages_field: str
    speaker_field: str
    content_field: str
    agent: str
    """The speaker whose turns are the assistant's."""


def rows_of_dialogue(row: Mapping[str, Any], layout: Layout, where: str, *, every_turn: bool) -> list[Example]:
    """One row for the last assistant turn, or for each; none where nothing precedes the only one.

    A dialogue without an assistant turn is one prompt without an answer. An assistant turn that opens the dialogue
    answers nobody: it stays in the later prompts, but is no row itself.

    Raises:
        DataError: the field is missing or holds no list of turns, or nobody answers and speakers have unknown names.
    """
    turns = _turns(row, layout, where)
    answers = [number for number, turn in enumerate(turns) if turn["role"] == ASSISTANT]
    if not answers:
        _require_known_speakers(turns, layout, where)
        return [Example(prompt=tuple(turns))] if turns else []
    learnt = answers if every_turn else answers[-1:]
    return [
        Example(prompt=tuple(turns[:number]), response=turns[number]["content"])
        for number in learnt
        if number and turns[number]["content"].strip()
    ]


def _require_known_speakers(turns: Turns, layout: Layout, where: str) -> None:
    """Raises DataError where the one who answers may go by another name: what it says would become a prompt."""
    others = [role for role in dict.fromkeys(turn["role"] for turn in turns) if role not in WHO_ASKS]
    if others:
        raise DataError(
            f"{where}: nobody in this dialogue is {layout.agent!r}; its turns are by {', '.join(map(repr, others))}. "
            "data.agent=… names the one whose turns are learnt; all others are the user's then."
        )


def _turns(row: Mapping[str, Any], layout: Layout, where: str) -> Turns:
    found = row.get(layout.messages_field)
    if isinstance(found, str):  # as csv keeps them
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(found)
    speaker, content = layout.speaker_field, layout.content_field
    turns = found if isinstance(found, list) else []
    _refuse_calls(turns, content, where)
    wrong = next((number for number, turn in enumerate(turns) if not _is_turn(turn, speaker, content)), None)
    if not isinstance(found, list) or wrong is not None:
        said = ""
        if wrong is not None and isinstance(turns[wrong], dict):
            has = ", ".join(f"{name} ({type(value).__name__})" for name, value in turns[wrong].items())
            said = f" Turn {wrong + 1} has {has}: see data.speaker_field, data.content_field."
        raise DataError(
            f"{where}: field {layout.messages_field!r} must hold a list of turns with {speaker} and {content}, both "
            f"text. Fields there: {', '.join(map(str, row))}.{said}"
        )
    return [{"role": _role(turn[speaker], layout.agent), "content": turn[content]} for turn in turns]


def _refuse_calls(turns: list[Any], content: str, where: str) -> None:
    """Raises DataError where a turn calls a tool outside its text: the call would be left out."""
    for number, turn in enumerate(turns, start=1):
        called = next((name for name in CALLS if isinstance(turn, dict) and turn.get(name)), None)
        if called:
            raise DataError(
                f"{where}: turn {number} has {called}, which is not read: a student would see what a tool said, and "
                f"never learn to ask for it. Write the call into the turn's {content}, as the model is to say it."
            )


def _is_turn(turn: Any, speaker: str, content: str) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get(speaker), str) and isinstance(turn.get(content), str)


def _role(speaker: str, agent: str) -> str:
    """As chat templates know it. With an agent of another name, everybody else is the user, but for "system"."""
    if speaker == agent:
        return ASSISTANT
    return speaker if agent == ASSISTANT or speaker == "system" else "user"
