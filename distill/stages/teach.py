"""teach: prompts + teacher → responses. Text and next-token targets, asked once, kept for ever."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill._shards import CUT, GOES_ON, Row
from distill._store_writer import StoreWriter
from distill.artifact import write_whole
from distill.encoding import decode_response, encode_prompt, encode_response
from distill.evaluation.exact_match import final_answer
from distill.example import Example
from distill.progress import bar
from distill.responses import DamagedStore, Header, TeacherResponses

VERSION = 3
"""Part of the fingerprint: raise it when the same settings give other responses."""
TEXT_BATCH = 4096
TOO_LONG, NO_ANSWER = "too long", "none"
WITHHELD, NO_TARGETS = "filtered", "no targets"
ROOM_FOR_ANSWER = 2
"""Tokens of the context that a prompt must leave: one of an answer and its end."""
NOT_LEARNT_FROM = {
    NO_ANSWER: "{} prompts have no answer of {}: left out.",
    TOO_LONG: "{} prompts do not fit the context of {}: not asked, and left out.",
    "no final answer": "{} answers of {} have no final answer (####): left out (teacher.filters).",
    "other answer": "{} answers of {} end in another answer than the data's: left out (teacher.filters).",
    "duplicate": "{} answers of {} say what another answer to the same prompt said: left out (teacher.filters).",
    "cut": "{} answers of {} were cut before their end: left out (teacher.filters).",
    "empty": "{} answers of {} are empty: left out.",
    WITHHELD: "{} answers of {} were withheld by the server's own filter: left out.",
    NO_TARGETS: "{} answers of {} came without a log-probability for every token: left out.",
}

# B rows of a batch, T tokens of a row, S positions with targets


@dataclass(frozen=True)
class Wanted:
    """Which targets a recipe's loss needs; `kind` None for text and token ids alone."""

    kind: str | None
    prompt_targets: bool
    temperature: float
    seed: int
    max_length: int | None = None
    """Tokens of a row with an answer of the data's own that are learnt; None: as many as the teacher can read."""


@dataclass(frozen=True)
class Question:
    """A prompt that the teacher is asked; `number` is the row's, `prompt_ids` None when no tokenizer is known."""

    number: int
    example: Example
    prompt_ids: list[int] | None


class Engine(Protocol):
    """A teacher that can be asked now. `tokenizer` None: it answers in text alone."""

    name: str
    tokenizer: Any
    context: int

    def header(self, num_rows: int) -> Header:
        """Of the store that its responses make."""
        ...

    def answer(self, questions: Sequence[Question]) -> list[Row]:
        """One row for each question, with its text; token ids where they are known, targets where they came along."""
        ...

    def with_targets(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with the targets that the header promises; rows that have them already stay as they are."""
        ...


def settings(teacher: Any, wanted: Wanted) -> dict[str, Any]:
    """What decides the responses, beside the data and the teacher's weights."""
    if teacher.kind == "none":
        return {"version": VERSION, "teacher": "none"}
    drawn = teacher.responses == "generate" and teacher.temperature > 0
    answers = teacher.decides(None)
    settings = {"version": VERSION, "teacher": answers, "seed": wanted.seed if drawn else None, "targets": None}
    if _keeps(teacher):
        settings["max_length"] = wanted.max_length
    if wanted.kind is None:
        return settings
    targets = {
        "kind": wanted.kind,
        "prompt_targets": wanted.prompt_targets,
        "temperature": wanted.temperature if wanted.kind not in {"dense", "next"} else 1.0,
        "seed": wanted.seed if wanted.kind == "sampled" else None,
    }
    if wanted.kind == "next" and teacher.kind == "hf":
        targets["ends"] = "all"  # of an answer; it was the tokenizer's own alone
    of_targets = {name: value for name, value in teacher.decides(wanted.kind).items() if name not in answers}
    return {**settings, "targets": {**targets, **of_targets}}


def _keeps(teacher: Any) -> bool:
    """Whether rows that have an answer of their own keep it."""
    return teacher.responses == "data" or teacher.keep_answers


def same_answers(settings: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether two stores with these settings, of the same data and teacher, hold the same answers."""
    return {**settings, "targets": None} == {**others, "targets": None}


def copy_texts(examples: Sequence[Example], folder: Path) -> None:
    """The store without a teacher: the data's own answers, as text."""
    header = Header(teacher="the data's own text", engine="none", dtype="none", kind="text", num_rows=len(examples))
    numbers = range(len(examples))
    writer = StoreWriter(folder, header, [numbers[i : i + TEXT_BATCH] for i in range(0, len(numbers), TEXT_BATCH)])
    for batch in writer.missing():
        writer.write([Row(n, examples[n].response or "", _own_source(examples[n])) for n in batch])
    write_whole(folder / "notes.json", json.dumps(notes(writer.finish(), "their own")))


def ask(
    teacher: Any,
    opened: AbstractContextManager[Engine],
    examples: Sequence[Example],
    folder: Path,
    earlier: TeacherResponses | None = None,
    max_length: int | None = None,
) -> Mapping[str, Any]:
    """Fills `folder` with the teacher's responses to all prompts, going on after what is there.

    `earlier`: a store of the same answers with other targets; then nothing is answered again, only scored.
    `max_length`: as `Wanted` has it.
    """
    with opened as engine:
        rows_of = _Rows(teacher, engine, examples, earlier, max_length)
        header = engine.header(len(examples) * teacher.samples)
        writer = StoreWriter(folder, header, rows_of.batches())
        missing = writer.num_missing()
        with bar("teacher answers", header.num_rows) as advance:
            advance(header.num_rows - missing)
            for numbers in writer.missing():
                rows = rows_of.answered(numbers)
                writer.write(engine.with_targets(rows) if header.layout else rows)
                advance(len(rows))
        sources = writer.finish()
        write_whole(folder / "notes.json", json.dumps(notes(sources, engine.name, teacher.samples)))
    return {"resumed_after_rows": header.num_rows - missing} if missing < header.num_rows else {}


def notes(sources: Counter[str], teacher: str, samples: int = 1) -> list[str]:
    """What could not be asked, what was left out and what was cut, counted over the whole store."""
    sources = Counter({**sources, TOO_LONG: sources[TOO_LONG] // samples})  # of prompts, not of what each would get
    said = [words.format(sources[source], teacher) for source, words in NOT_LEARNT_FROM.items() if sources[source]]
    if sources[CUT]:
        by = "teacher.max_new_tokens, training.max_length, context"
        one = sources[CUT] == 1
        what, end = ("answer", "was cut ({}); it does") if one else ("answers", "were cut ({}); they do")
        said.append(f"{sources[CUT]} {what} of {teacher} {end.format(by)} not end.")
    return said


def _own_source(example: Example) -> str:
    """The source of a row with the data's own answer."""
    return NO_ANSWER if example.response is None else "data" if example.ends else GOES_ON


class _Rows:
    """Which rows there are, in which batches they are asked, and what becomes of an answer."""

    def __init__(
        self,
        teacher: Any,
        engine: Engine,
        examples: Sequence[Example],
        earlier: TeacherResponses | None,
        max_length: int | None,
    ):
        self.teacher, self.engine, self.examples, self.earlier = teacher, engine, examples, earlier
        self.keeps = _keeps(teacher)
        self.room = min(engine.context, max_length or engine.context)
        tokenizer = engine.tokenizer
        self.prompts = None if tokenizer is None else [encode_prompt(tokenizer, e.prompt) for e in examples]

    def batches(self) -> list[list[int]]:
        """Row numbers of each batch, fixed by the full list of prompts: own answers first, then what is to be asked.

        All samples of a prompt are in one batch: they are compared with each other.
        """
        own = [n for n in range(len(self.examples)) if self._is_own(n)]
        kept = set(own)
        asked = [n for n in range(len(self.examples)) if n not in kept]
        samples, size = self.teacher.samples, max(1, self.teacher.batch_size // self.teacher.samples)
        made = []
        for prompts in (own, asked):
            ordered = sorted(prompts, key=self._length)
            made += [ordered[i : i + size] for i in range(0, len(ordered), size)]
        return [[n * samples + sample for n in prompts for sample in range(samples)] for prompts in made]

    def answered(self, numbers: Sequence[int]) -> list[Row]:
        """The rows of one batch, without targets unless they came with the answers."""
        rows = {number: self._without_asking(number) for number in numbers}
        asked = [number for number, row in rows.items() if row is None]
        if asked and self.teacher.responses == "generate":
            rows |= dict(zip(asked, self._said(asked), strict=True))
        return [row or self._left_out(number, "", NO_ANSWER) for number, row in rows.items()]

    def _said(self, numbers: Sequence[int]) -> list[Row]:
        if self.earlier is not None:
            try:
                return [replace(self.earlier[number], targets=None) for number in numbers]
            except DamagedStore:
                self.earlier = None  # another run's, which will take care of it
        return list(self._filtered(self.engine.answer([self._question(number) for number in numbers])))

    def _without_asking(self, number: int) -> Row | None:
        """The row that needs no question: too long a prompt, or an answer of its own."""
        prompt, sample = divmod(number, self.teacher.samples)
        example = self.examples[prompt]
        # a prompt that leaves no room for an answer is left out, or it would take its batch mates' room too
        room = self.room if self._is_own(prompt) else self.engine.context
        if self.prompts is not None and len(self.prompts[prompt]) + ROOM_FOR_ANSWER > room:
            return self._left_out(number, "", TOO_LONG)
        if not self._is_own(prompt):
            return None
        assert example.response is not None
        if sample:
            return self._left_out(number, "", "own answer")
        if self.prompts is None:
            return Row(number, example.response, _own_source(example))
        tokenizer, length = self.engine.tokenizer, len(self.prompts[prompt])
        answer = encode_response(tokenizer, example.response)[: None if example.ends else -1]
        ids = np.array([*self.prompts[prompt], *answer][:room], dtype=np.int32)
        if len(ids) < length + len(answer):  # longer than is read or learnt: it was cut, and does not end
            return Row(number, decode_response(tokenizer, ids[length:].tolist()), CUT, ids, length)
        return Row(number, example.response, _own_source(example), ids, length)

    def _filtered(self, rows: Sequence[Row]) -> Iterator[Row]:
        """The rows, those with an answer that `teacher.filters` does not take left out."""
        heard: set[tuple[int, str]] = set()
        for row in rows:
            prompt = row.number // self.teacher.samples
            why = self._why_not(row, self.examples[prompt], (prompt, row.text.strip()) in heard)
            if why is None:
                heard.add((prompt, row.text.strip()))
            yield row if why is None else self._left_out(row.number, row.text, why)

    def _why_not(self, row: Row, example: Example, heard: bool) -> str | None:
        filters, found = self.teacher.filters, final_answer(row.text)
        if row.source not in {"teacher", CUT}:
            return row.source
        if not row.text.strip() and row.source == "teacher":
            return "empty"
        if "cut" in filters and row.source == CUT:
            return "cut"
        if "final_answer" in filters and found is None:
            return "no final answer"
        if "known_answer" in filters and example.response is not None:
            known = final_answer(example.response)
            agrees = row.text.strip() == example.response.strip() if known is None else found == known
            if not agrees:
                return "other answer"
        return "duplicate" if "duplicate" in filters and heard else None

    def _left_out(self, number: int, text: str, why: str) -> Row:
        if self.prompts is None:
            return Row(number, text, why)
        return Row(number, text, why, np.array(self.prompts[number // self.teacher.samples][:1], dtype=np.int32), 1)

    def _question(self, number: int) -> Question:
        prompt = number // self.teacher.samples
        return Question(number, self.examples[prompt], None if self.prompts is None else self.prompts[prompt])

    def _is_own(self, prompt: int) -> bool:
        return self.keeps and self.examples[prompt].response is not None

    def _length(self, prompt: int) -> float:
        """What the rows of a batch should have alike, or short ones are padded to the longest."""
        asked = len(self.prompts[prompt]) if self.prompts is not None else len(str(self.examples[prompt].prompt))
        # about four characters a token; exact lengths would cost a second pass of the tokenizer
        return min(self.room, asked + len(self.examples[prompt].response or "") / 4) if self._is_own(prompt) else asked
