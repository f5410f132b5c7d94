"""The teacher behind an OpenAI-compatible endpoint: answers by asking, targets with the answers or by scoring rows."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from distill._shards import ANSWERED, CUT, Row
from distill.answer_file.layout import vocab_size_of
from distill.checkpoint import tokenizer_folder
from distill.encoding import encode_prompt, encode_response, load_tokenizer, template_hash, tokenizer_hash
from distill.example import Example, messages_of
from distill.responses import Header
from distill.served.answer import Answer, Request
from distill.served.client import Served
from distill.served.endpoint import Endpoint
from distill.served.faults import PromptsTooLong
from distill.stages._served_check import check_temperature, check_tokenizer
from distill.stages._served_plan import Plan, key_of, plan
from distill.stages._served_tokens import TokenIds, end_ids, targets
from distill.stages.teach import NO_TARGETS, ROOM_FOR_ANSWER, TOO_LONG, WITHHELD, Question, Wanted
from distill.teacher._served import Served as Option
from distill.teacher.server import Server

UNLIMITED = 1 << 30


@contextmanager
def open_server(
    teacher: Server,
    wanted: Wanted,
    examples: Sequence[Example],
    journals: Path,
    note: Callable[[str], None],
    *,
    on_policy: bool = False,
) -> "Iterator[ServedTeacher]":
    """The endpoint, ready to be asked. Its journal of answers lies in `journals`, for every run that asks it.

    Raises:
        RecipeError: it cannot be reached or used, or cannot give what the loss needs; nothing has been asked.
    """
    endpoint = Endpoint(
        base_url=teacher.base_url,
        model=teacher.model,
        key=key_of(teacher),
        **teacher.pace,
        price_per_million_prompt_tokens=teacher.price_per_million_prompt_tokens,
        price_per_million_answer_tokens=teacher.price_per_million_answer_tokens,
        max_cost=teacher.max_cost,
    )
    journal = journal_of(journals, teacher.base_url.rstrip("/"), teacher.model)
    with Served(endpoint, journal, note) as served:
        # llama.cpp calls a model by its file; a store is moved between machines
        name = Path(teacher.model).name if teacher.model.startswith("/") else teacher.model
        yield ServedTeacher(teacher, wanted, served, examples, name, note, on_policy=on_policy)


def identity(teacher: Option, kind: str | None) -> dict[str, str]:
    """What decides the responses beside the option's own settings: the tokenizer, wherever its files lie.

    And, with targets of this kind, which tokens end an answer beside the tokenizer's own.
    """
    if teacher.tokenizer_from is None:
        return {}
    folder = tokenizer_folder(*teacher.tokenizer_from)
    tokenizer = load_tokenizer(folder)
    vocab_size = vocab_size_of(teacher.tokenizer_from, tokenizer)
    found = {"tokenizer": f"{tokenizer_hash(tokenizer)} {template_hash(tokenizer)} {vocab_size}"}
    ends = sorted(end_ids(folder, tokenizer))
    return found if kind != "next" or len(ends) == 1 else {**found, "ends": json.dumps(ends)}


def journal_of(journals: Path, *of: str) -> Path:
    """The file that keeps the answers of one model at one place."""
    return journals / f"{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:20]}.sqlite"


class ServedTeacher:
    """See `distill.stages.teach.Engine`."""

    def __init__(
        self,
        teacher: Option,
        wanted: Wanted,
        served: Served,
        examples: Sequence[Example],
        name: str,
        note: Callable[[str], None],
        *,
        on_policy: bool = False,
    ):
        self.teacher, self.wanted, self.served, self.examples, self.note = teacher, wanted, served, examples, note
        self.name = name
        self.tokenizer = self.vocab_size = None
        ends: frozenset[int] = frozenset()
        if teacher.tokenizer_from:
            folder = tokenizer_folder(*teacher.tokenizer_from)
            self.tokenizer = load_tokenizer(folder)
            self.vocab_size = vocab_size_of(teacher.tokenizer_from, self.tokenizer)
            if wanted.kind == "next":  # a student with other tokens learns how likely the end is, whichever it was
                ends = end_ids(folder, self.tokenizer)
        own = any(example.response is not None for example in examples)
        given = on_policy or (own and (teacher.responses == "data" or teacher.keep_answers))
        self.where = f"{served.endpoint.model} at {served.endpoint.base_url}"
        self.plan: Plan = plan(
            teacher,
            wanted,
            served.capabilities,
            self.where,
            self.vocab_size,
            given_rows=given,
            num_ends=len(ends),
        )
        self.layout = self.plan.layout
        self.context = self.plan.context or UNLIMITED
        self.token_ids = None
        if self.tokenizer is not None:
            assert self.vocab_size is not None
            self.token_ids = TokenIds(self.tokenizer, self.vocab_size, ends)
            if self.plan.by_ids or self.layout is not None:
                check_tokenizer(served, self.plan, self.token_ids, teacher, self.where)
                check_temperature(served, self.plan, self.token_ids, teacher, self.where)
        self._announced = self._told_of_ends = False

    def header(self, num_rows: int) -> Header:
        """Of the store that its responses make."""
        return Header(
            teacher=self.name,
            engine="OpenAI-compatible endpoint",
            dtype="unknown",
            kind=self.layout.kind if self.layout else "tokens" if self.tokenizer else "text",
            tokenizer_hash=tokenizer_hash(self.tokenizer) if self.tokenizer else None,
            template_hash=template_hash(self.tokenizer) if self.tokenizer else None,
            vocab_size=self.vocab_size,
            kept=self.layout.kept if self.layout else 0,
            samples=self.teacher.samples,
            num_rows=num_rows,
        )

    def answer(self, questions: Sequence[Question]) -> list[Row]:
        """One row for each question; all that the server says of its tokens is used."""
        self._announce()
        requests = {question.number: self._request(question) for question in questions}
        answers: dict[int, Answer] = {}
        numbers = list(requests)
        while numbers:
            try:
                found = self.served.answer([requests[n] for n in numbers], top_logprobs=self.plan.tops, announced=True)
            except PromptsTooLong as refused:  # the others are in the journal
                left = set(refused.indices)
                numbers = [number for place, number in enumerate(numbers) if place not in left]
            else:
                answers = dict(zip(numbers, found, strict=True))
                break
        return [
            self._row(question, answers[question.number])
            if question.number in answers
            else Row(question.number, "", TOO_LONG)
            for question in questions
        ]

    def with_targets(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with targets; those that came without are scored where the endpoint can, else left out."""
        self._announce()
        missing = [row for row in rows if row.targets is None and len(self._positions(row))]
        scored = self._scored(missing) if missing else {}
        return [scored.get(row.number, row) for row in rows]

    def _row(self, question: Question, answer: Answer) -> Row:
        number, cut = question.number, answer.finish == "length"
        if answer.finish == "filtered":
            return Row(number, answer.text, WITHHELD)
        if not answer.text.strip():
            return Row(number, "", "empty")
        source = CUT if cut else "teacher"
        if self.tokenizer is None or self.token_ids is None:
            return Row(number, answer.text, source)
        prompt, said = question.prompt_ids or [], self.token_ids.of(answer)
        ids = encode_response(self.tokenizer, answer.text)[:-1] if said is None else said.ids
        # an answer that was cut does not end: a student must not learn to stop there
        ids = ids if cut else [*ids, self.token_ids.eos]
        ids_T = np.array([*prompt, *ids][: self.context], dtype=np.int32)
        row = Row(number, answer.text, source, ids_T, len(prompt))
        if said is None or self.layout is None or not self.plan.from_answers:
            return row
        if said.end is None and not cut:
            self._tell_of_ends()
        tops, own = self.token_ids.tops(said)
        kept = len(ids_T) - len(prompt)
        made = targets(tops[:kept], own[:kept], ids[:kept], self.layout, f"answer {number} of {self.where}")
        return replace(row, targets=made)

    def _scored(self, rows: Sequence[Row]) -> dict[int, Row]:
        """The rows with targets by scoring, by number; a row that cannot be scored has no response to learn from."""
        if not self.plan.can_score:
            return {row.number: _without(row, NO_TARGETS) for row in rows}
        assert self.layout is not None and self.token_ids is not None
        found: dict[int, Row] = {}
        left = list(rows)
        while left:
            ids = [_ids(row) for row in left]
            try:
                scores = self.served.score(ids, [self._positions(row) for row in left], self.plan.score_tops)
            except PromptsTooLong as refused:
                found |= {left[place].number: _without(left[place], TOO_LONG) for place in refused.indices}
                left = [row for place, row in enumerate(left) if place not in set(refused.indices)]
                continue
            for row, given in zip(left, scores, strict=True):
                where = self._positions(row)
                following = _ids(row)[where.start + 1 : where.stop + 1]
                tops = [self.token_ids.top(top, token) for top, token in zip(given, following, strict=True)]
                if row.source != CUT and following[-1] == self.token_ids.eos:
                    tops[-1] = self.token_ids.over(tops[-1])
                own = [
                    dict(zip(*top, strict=True)).get(token, np.nan) for top, token in zip(tops, following, strict=True)
                ]
                if np.isnan(own).any():  # named by bytes that are not its own: half a character, say
                    found[row.number] = _without(row, NO_TARGETS)
                    continue
                said = f"scores of row {row.number} by {self.where}"
                found[row.number] = replace(row, targets=targets(tops, own, following, self.layout, said))
            break
        return found

    def _positions(self, row: Row) -> range:
        if row.source not in ANSWERED or row.input_ids_T is None:
            return range(0)
        return range(0 if self.wanted.prompt_targets else row.prompt_length - 1, len(row.input_ids_T) - 1)

    def _request(self, question: Question) -> Request:
        teacher, example = self.teacher, question.example
        messages = ids = None
        room, prompt = teacher.max_new_tokens, example.prompt
        if self.plan.by_ids:
            ids = tuple(question.prompt_ids or ())
            room = max(1, min(room, self.context - len(ids)))
        else:
            messages = tuple(messages_of(prompt))
        return Request(
            messages=messages,
            token_ids=ids,
            max_tokens=room,
            temperature=teacher.temperature,
            seed=self.wanted.seed if teacher.temperature else None,
            sample=question.number % teacher.samples,
        )

    def _announce(self) -> None:
        """Says once, before the first request, what asking for everything takes at most."""
        if self._announced:
            return
        self._announced = True
        teacher, asked, scored = self.teacher, [], []
        for number, example in enumerate(self.examples):
            prompt = self._prompt(example)
            if len(prompt or ()) + ROOM_FOR_ANSWER > self.context:
                continue
            if example.response is not None and (teacher.responses == "data" or teacher.keep_answers):
                if prompt is not None and self.layout is not None:
                    own = encode_response(cast(Any, self.tokenizer), example.response)
                    scored.append((len(prompt), len(own)))
            elif teacher.responses == "generate":
                numbers = range(number * teacher.samples, (number + 1) * teacher.samples)
                asked += [self._request(Question(n, example, prompt)) for n in numbers]
                if prompt is not None and self.layout is not None and not self.plan.from_answers:
                    scored += [(len(prompt), teacher.max_new_tokens + 1)] * teacher.samples
        if asked:
            self.note(f"{self.name}: {self.served.estimate(asked, top_logprobs=self.plan.tops)}")
        if scored:
            self.note(f"{self.name}: {self._scoring_takes(scored)}")

    def _scoring_takes(self, lengths: Sequence[tuple[int, int]]) -> str:
        """What scoring rows of so many tokens of prompt and response takes at most, in words."""
        requests = tokens = 0
        for prompt, response in lengths:
            end = min(prompt + response, self.context)
            first = 1 if self.wanted.prompt_targets else prompt
            stepwise = self.served.capabilities.scoring == "stepwise"
            requests += end - first if stepwise else 1
            tokens += (end - first) * (end - 1 + first) // 2 if stepwise else end
        endpoint = self.served.endpoint
        money = f", at most {endpoint.cost(tokens, requests):.6g} in money" if endpoint.has_prices else ""
        return (
            f"{len(lengths)} rows to score, those in the journal included: at most {requests:,} requests, {tokens:,} "
            f"prompt tokens and {requests:,} answer tokens{money}"
        )

    def _prompt(self, example: Example) -> list[int] | None:
        return None if self.tokenizer is None else encode_prompt(self.tokenizer, example.prompt)

    def _tell_of_ends(self) -> None:
        if not self._told_of_ends:
            self._told_of_ends = True
            self.note(
                f"{self.name} does not tell how likely the end of an answer was; it is taken to be as likely as the "
                "answer's tokens on average."
            )


def _ids(row: Row) -> list[int]:
    assert row.input_ids_T is not None
    return row.input_ids_T.tolist()


def _without(row: Row, why: str) -> Row:
    assert row.input_ids_T is not None
    return Row(row.number, row.text, why, row.input_ids_T[:1], 1)
