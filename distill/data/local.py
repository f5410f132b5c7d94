"""`data=local`: rows of a .jsonl, .csv or .parquet file, or of a data set on the hub."""

import contextlib
import json
import random
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.data._rows import read_rows
from distill.errors import DataError
from distill.example import Example, Examples
from distill.option import STRICT, FileOrHubId


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Local:
    """Rows with a prompt and, where they have one, an answer: from a file or from the hub."""

    kind: Literal["local"]
    path: FileOrHubId
    """A .jsonl, .csv or .parquet file, or a data set's id on the hub."""
    eval_path: FileOrHubId | None = None
    """The same for evaluation. Without it, a tenth of the rows (500 at most) is held out before `rows` is applied."""
    split: str = "train"
    """Split of a hub data set."""
    eval_split: str = "test"
    """Split of a hub data set for evaluation, when `eval_path` is a hub id."""
    prompt_field: str = "prompt"
    response_field: str = "response"
    """Rows without a value here have no answer of their own."""
    messages_field: str | None = None
    """Chat `messages`; the last assistant turn is the response, everything before it the prompt."""
    text_field: str | None = None
    """Plain text for language modelling; takes the place of prompt and response."""
    teacher_field: str | None = None
    """With teacher=routed: the field that names the teacher of a row."""
    rows: int | str | None = None
    """A slice of the training rows, after the seeded shuffle: 500 (the first 500), "500:" or "100:600"."""
    labelled_rows: Annotated[int, Field(ge=0)] | None = None
    """How many of the chosen rows, from the first, count as having an answer of their own. None: all that have one."""
    evaluation_rows: Annotated[int, Field(ge=1)] | None = None
    """At most so many evaluation rows."""
    shuffle_seed: int = 0
    """Not the run's seed: a teacher and its student must cut the same rows whatever their seeds are."""

    def __post_init__(self) -> None:
        parse_slice(self.rows)

    def load(self) -> Examples:
        """Reads, shuffles, holds out, slices.

        Raises:
            DataError: a file is missing, empty or malformed, or a field does not exist.
        """
        train = self._examples(self.path, self.split, routed=True)
        random.Random(self.shuffle_seed).shuffle(train)
        if self.eval_path:
            evaluation = self._examples(self.eval_path, self.eval_split)
        else:
            held_out = min(500, max(1, len(train) // 10))
            evaluation, train = train[:held_out], train[held_out:]
        chosen = train[parse_slice(self.rows)]
        if not chosen:
            raise DataError(f"data.rows={self.rows} leaves no row of the {len(train)} in {self.path}.")
        if self.labelled_rows is not None:
            chosen = [
                row if number < self.labelled_rows else replace(row, response=None) for number, row in enumerate(chosen)
            ]
        return Examples(
            train=chosen,
            evaluation={"exact_match": evaluation[: self.evaluation_rows]},
        )

    def _examples(self, path: str, split: str, *, routed: bool = False) -> list[Example]:
        """`routed`: rows that a teacher is asked about, which must say whom; nobody is asked about evaluation rows."""
        field = self.teacher_field if routed else None
        return [
            replace(self._example(row, where), teacher=_text(row, field, where) if field else None)
            for where, row in read_rows(path, split)
        ]

    def _example(self, row: dict[str, Any], where: str) -> Example:
        if self.text_field:
            return Example(prompt="", response=_text(row, self.text_field, where))
        if self.messages_field:
            return _from_messages(row, self.messages_field, where)
        response = row.get(self.response_field)
        if response is not None and not isinstance(response, str | int | float):
            raise DataError(
                f"{where}: field {self.response_field!r} holds {type(response).__name__}, text is needed. "
                "For lists of chat turns use data.messages_field."
            )
        has_answer = response is not None and str(response) != ""
        return Example(prompt=_text(row, self.prompt_field, where), response=str(response) if has_answer else None)


def parse_slice(rows: int | str | None) -> slice:
    """500, "500:", "100:600" or None as a slice. Raises ValueError, which pydantic turns into the recipe's error."""
    if rows is None:
        return slice(None)
    if isinstance(rows, int):
        return slice(rows)
    try:
        start, stop = (int(part) if part.strip() else None for part in rows.split(":"))
    except ValueError:
        raise ValueError(f'rows={rows!r} is no slice; write 500 (the first 500), "500:" or "100:600"') from None
    return slice(start, stop)


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if value is None:
        raise DataError(
            f"{where}: no field {field!r}. Fields there: {', '.join(map(str, row))}. "
            "Name the right ones with data.prompt_field, data.response_field or data.text_field."
        )
    return str(value)


def _from_messages(row: dict[str, Any], field: str, where: str) -> Example:
    turns = row.get(field)
    if isinstance(turns, str):  # as csv keeps them
        with contextlib.suppress(json.JSONDecodeError):
            turns = json.loads(turns)
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        fields = ", ".join(map(str, row))
        raise DataError(
            f"{where}: field {field!r} must hold a list of turns with role and content, both text. "
            f"Fields there: {fields}."
        )
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        return Example(prompt=tuple(turns))
    return Example(prompt=tuple(turns[: answers[-1]]), response=turns[answers[-1]]["content"])


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
