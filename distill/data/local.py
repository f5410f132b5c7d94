"""`data=local`: rows of a .jsonl, .csv or .parquet file, or of a data set on the hub."""

import random
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.data._dialogue import ASSISTANT, Layout, rows_of_dialogue
from distill.data._prompt import fields_of, filled
from distill.data._rows import read_rows, refuse_halves, value_of
from distill.errors import DataError
from distill.example import Example, Examples
from distill.option import STRICT, FileOrHubId


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Local:
    """Rows with a prompt and, where they have one, an answer: from a file or from the hub."""

    kind: Literal["local"]
    path: FileOrHubId
    """A .jsonl, .csv or .parquet file, or a data set's id on the hub."""
    subset: str | None = None
    """Of a hub data set that comes in several: what the hub calls its configuration, as `main` of openai/gsm8k."""
    eval_path: FileOrHubId | None = None
    """The same for evaluation. Without it, a tenth of the rows (500 at most) is held out before `rows` is applied.

    `subset` counts for it where it is the same data set as `path`.
    """
    split: str = "train"
    """Split of a hub data set."""
    eval_split: str = "test"
    """Split of a hub data set for evaluation, when `eval_path` is a hub id."""
    prompt_field: str = "prompt"
    prompt_template: str | None = None
    """The prompt, with fields of the row in braces: "Translate into English:\\n{text}". Takes prompt_field's place."""
    response_field: str = "response"
    """Rows without a value here have no answer of their own."""
    messages_field: str | None = None
    """Chat `messages`; the last assistant turn is the response, everything before it the prompt. Turns of weight 0, in
    OpenAI's layout, are said and not learnt."""
    turns: Literal["last", "all"] = "last"
    """With messages: all makes a row of each assistant turn. A dialogue counts as one row below, and is never split
    between training and evaluation."""
    speaker_field: str = "role"
    """In each turn: who speaks."""
    content_field: str = "content"
    """In each turn: what is said."""
    agent: str = ASSISTANT
    """The speaker whose turns are learnt; with another name than assistant, all others but `system` are the user."""
    text_field: str | None = None
    """Plain text for language modelling; takes the place of prompt and response."""
    teacher_field: str | None = None
    """With teacher=routed: the field that names the teacher of a row."""
    rows: int | str | None = None
    """A slice of the training rows, after the seeded shuffle: 500 (the first 500), "500:" or "100:600"."""
    labelled_rows: Annotated[int, Field(ge=0)] | None = None
    """How many of the chosen rows, from the first, count as having an answer of their own. None: all that have one."""
    evaluation_rows: Annotated[int, Field(ge=1)] | None = None
    """At most so many evaluation rows, after their own shuffle."""
    shuffle_seed: int = 0
    """Not the run's seed: a teacher and its student must cut, and be judged on, the same rows whatever that is."""

    def __post_init__(self) -> None:
        parse_slice(self.rows)
        if self.prompt_template is not None:
            fields_of(self.prompt_template)
        in_place = "text_field" if self.text_field else "messages_field" if self.messages_field else None
        if self.prompt_template is not None and in_place:
            raise ValueError(f"prompt_template and {in_place} both say what the prompt is; use one of them")
        if self.turns == "all" and in_place != "messages_field":
            raise ValueError("turns=all is for dialogues: name the field with their turns as messages_field")

    @property
    def prompt_fields(self) -> list[str]:
        """Names of the fields of a row that its prompt, or its plain text, is made of; at least one."""
        if self.prompt_template is not None:
            return list(fields_of(self.prompt_template))
        return [self.text_field or self.messages_field or self.prompt_field]

    def rows_left(self, num_rows: int) -> int:
        """Training rows of so many in the source: those that are not held out, and of them the slice."""
        held_out = 0 if self.eval_path else num_held_out(num_rows)
        return len(range(num_rows - held_out)[parse_slice(self.rows)])

    def load(self) -> Examples:
        """Reads, shuffles, holds out, slices.

        Raises:
            DataError: a file is missing, empty or malformed, or a field does not exist.
        """
        read = self._read(self.path, self.split, "data.path", routed=True)
        train = [row for row in read if row]
        left_out = len(read) - len(train)
        why = "texts are blank" if self.text_field else "dialogues have no turn to learn that answers another one"
        note = f"{left_out} of {len(read)} {why}."
        if not train:
            raise DataError(f"{self.path}: {note} None is left.")
        random.Random(self.shuffle_seed).shuffle(train)
        if self.eval_path is not None:
            evaluation = self._read(self.eval_path, self.eval_split, "data.eval_path")
            # the first of them stand for all: in a file that is sorted by class they would be of one or two
            random.Random(self.shuffle_seed).shuffle(evaluation)
        else:
            held_out = num_held_out(len(train))
            evaluation, train = train[:held_out], train[held_out:]
            if not train:
                raise DataError(f"{self.path} holds one row, and it is held out. Give more, or data.eval_path=… too.")
        chosen = train[parse_slice(self.rows)]
        if not chosen:
            raise DataError(f"data.rows={self.rows} leaves no row of the {len(train)} in {self.path}.")
        if self.labelled_rows is not None:
            unlabelled = [[replace(example, response=None) for example in row] for row in chosen[self.labelled_rows :]]
            chosen = chosen[: self.labelled_rows] + unlabelled
        return Examples(
            train=[example for row in chosen for example in row],
            evaluation={"exact_match": [example for row in evaluation[: self.evaluation_rows] for example in row]},
            notes=(note,) if left_out else (),
        )

    def _read(self, path: str, split: str, asked_by: str, *, routed: bool = False) -> list[list[Example]]:
        """The rows of the source that the key `asked_by` names, each as its examples: one, or a dialogue's turns.
        There is none where a dialogue has nothing to learn, or a text is blank.

        `routed`: rows that a teacher is asked about, which must say whom; nobody is asked about evaluation rows.
        """
        field = self.teacher_field if routed else None
        subset = self.subset if path == self.path else None
        rows = []
        for where, row in read_rows(path, split, subset, asked_by=asked_by):
            teacher = _text(row, field, where) if field else None
            examples = [replace(example, teacher=teacher) for example in self.examples_of(row, where)]
            if self.text_field and not (examples[0].response or "").strip():
                examples = []  # a student would learn that nothing follows
            refuse_halves([(example.prompt, example.response) for example in examples], where)
            rows.append(examples)
        return rows

    def examples_of(self, row: dict[str, Any], where: str) -> list[Example]:
        """One row of the source as its examples: one, or a dialogue's turns. `where` names it in a DataError."""
        if self.text_field:
            return [Example(prompt="", response=_text(row, self.text_field, where))]
        if self.messages_field:
            layout = Layout(self.messages_field, self.speaker_field, self.content_field, self.agent)
            return rows_of_dialogue(row, layout, where, every_turn=self.turns == "all")
        response = value_of(row, self.response_field)
        if response is not None:
            _require_text(response, self.response_field, where)
        template = self.prompt_template
        prompt = filled(template, row, where) if template else _text(row, self.prompt_field, where)
        if not prompt.strip():
            raise DataError(f"{where}: its prompt is empty, text is needed. Plain text goes into data.text_field.")
        has_answer = response is not None and str(response).strip() != ""
        return [Example(prompt=prompt, response=str(response) if has_answer else None)]


def num_held_out(num_rows: int) -> int:
    """Rows for evaluation of so many, where no others are named: a tenth, 500 at most."""
    return min(500, max(1, num_rows // 10))


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
    value = value_of(row, field)
    if value is None and field in row:
        raise DataError(f"{where}: field {field!r} is null, text is needed.")
    if value is None:
        raise DataError(
            f"{where}: no field {field!r}. Fields there: {', '.join(map(str, row))}. "
            "Name the right ones with data.prompt_field, data.response_field or data.text_field."
        )
    _require_text(value, field, where)
    return str(value)


def _require_text(value: Any, field: str, where: str) -> None:
    if not isinstance(value, str | int | float):
        raise DataError(
            f"{where}: field {field!r} holds {type(value).__name__}, text is needed. For lists of chat turns use "
            "data.messages_field."
        )
