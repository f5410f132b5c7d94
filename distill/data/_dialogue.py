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
    """One row for the last assistant turn that is to be learnt, or for each; none where nothing precedes the only one.

    An assistant turn of weight 0, as OpenAI's files for fine-tuning mark it, is said in later prompts and not learnt.
    A dialogue without an assistant turn is one prompt without an answer. An assistant turn that opens the dialogue
    answers nobody: it stays in the later prompts, but is no row itself.

    Raises:
        DataError: the field is missing or holds no list of turns, nobody answers and speakers have unknown names, or an
            assistant turn has another weight than 0 or 1.
    """
    turns, unlearnt = _turns(row, layout, where)
    answers = [number for number, turn in enumerate(turns) if turn["role"] == ASSISTANT]
    if not answers:
        _require_known_speakers(turns, layout, where)
        return [Example(prompt=tuple(turns))] if turns else []
    learnt = [number for number in answers if number not in unlearnt]
    return [
        Example(prompt=tuple(turns[:number]), response=turns[number]["content"])
        for number in (learnt if every_turn else learnt[-1:])
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


def _turns(row: Mapping[str, Any], layout: Layout, where: str) -> tuple[Turns, set[int]]:
    """The turns, and the places of those that are not to be learnt."""
    found = row.get(layout.messages_field)
    if isinstance(found, str):  # as csv keeps them
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(found)
    speaker, content = layout.speaker_field, layout.content_field
    turns = found if isinstance(found, list) else []
    _refuse_calls(turns, content, where)
    wrong = next((number for number, turn in enumerate(turns) if not _is_turn(turn, speaker, content)), None)
    if not isinstance(found, list) or wrong is not None:
        hint = ""
        if wrong is not None and isinstance(turns[wrong], dict):
            has = ", ".join(f"{name} ({type(value).__name__})" for name, value in turns[wrong].items())
            hint = f" Turn {wrong + 1} has {has}: see data.speaker_field, data.content_field."
        raise DataError(
            f"{where}: field {layout.messages_field!r} must hold a list of turns with {speaker} and {content}, both "
            f"text. Fields there: {', '.join(map(str, row))}.{hint}"
        )
    said = [{"role": _role(turn[speaker], layout.agent), "content": turn[content]} for turn in turns]
    return said, _unlearnt(turns, said, where)


def _unlearnt(turns: list[Any], said: Turns, where: str) -> set[int]:
    """Places of the assistant's turns whose weight is 0. Raises DataError for a weight that is neither 0 nor 1."""
    # None: in parquet every turn has every field
    weights = {
        place: turn["weight"]
        for place, turn in enumerate(turns)
        if said[place]["role"] == ASSISTANT and turn.get("weight") is not None
    }
    for place, weight in weights.items():
        if weight not in (0, 1):
            raise DataError(
                f"{where}: turn {place + 1} has weight {weight!r}; 0 (not learnt) or 1 is needed. "
                "Leave the field out to learn the turn."
            )
    return {place for place, weight in weights.items() if weight == 0}


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
