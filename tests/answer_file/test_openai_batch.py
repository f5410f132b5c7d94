"""A batch's output and the requests that were sent, by hand, in the published schema."""

import pytest

from distill.answer_file.matching import match
from distill.answer_file.reading import read_answers
from distill.answer_file.row import to_row
from distill.errors import DataError
from distill.example import Example
from distill.teacher.file import File
from tests.answer_file import layouts

EXAMPLES = [Example(prompt=f"{n} + {n}?") for n in range(5)]


def request(name: str, prompt: str) -> dict:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def answered(name: str, text: str | None, finish: str = "stop") -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish}
    body = {"object": "chat.completion", "choices": [choice]}
    return {"id": "r", "custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}


@pytest.fixture
def sent(tmp_path):
    return layouts.write_lines(tmp_path / "in.jsonl", [request(f"q{n}", e.prompt) for n, e in enumerate(EXAMPLES)])


def batch(tmp_path, sent, rows, **settings) -> File:
    output = layouts.write_lines(tmp_path / "out.jsonl", rows)
    return File(kind="file", path=str(output), requests=None if sent is None else str(sent), **settings)


def test_answers_find_their_prompts_by_their_custom_id(tmp_path, sent):
    failed = {"id": "r", "custom_id": "q1", "response": None, "error": {"code": "batch_expired", "message": "…"}}
    busy = {"custom_id": "q2", "response": {"status_code": 500, "body": {"error": {"message": "…"}}}, "error": None}
    rows = [answered("q4", "8 of cour", "length"), failed, answered("q3", "", "content_filter"), answered("q0", "0")]
    found = match(read_answers(batch(tmp_path, sent, [*rows, busy])), EXAMPLES)
    assert [answer and (answer.text, answer.cut) for answer in found.answers] == [
        ("0", False),
        None,
        None,
        None,
        ("8 of cour", True),
    ]
    assert found.note == "3 of 5 prompts have no answer in the file and are left out."


def test_a_completion_says_its_text(tmp_path):
    sent = layouts.write_lines(tmp_path / "in.jsonl", [{"custom_id": "q0", "body": {"prompt": EXAMPLES[0].prompt}}])
    choices = [{"text": "0", "finish_reason": "stop"}, {"text": "none", "finish_reason": "stop"}]
    row = {"custom_id": "q0", "response": {"status_code": 200, "body": {"choices": choices}}}
    (found,) = match(read_answers(batch(tmp_path, sent, [row])), EXAMPLES[:1]).answers
    assert found is not None and found.text == "0"


@pytest.mark.parametrize("with_tokenizer", [False, True])
@pytest.mark.parametrize("finish", ["length", "stop"])
def test_an_answer_that_was_cut_does_not_end(tmp_path, tokenizer, finish, with_tokenizer):
    rows = [{"prompt": "2 + 2?", "response": "It is fo", "finish_reason": finish}]
    (answer,) = read_answers(batch(tmp_path, None, rows))
    example = Example(prompt="2 + 2?")
    row = to_row(answer, 0, example, tokenizer if with_tokenizer else None, None, None)
    assert row.source == ("teacher, cut" if finish == "length" else "teacher")
    if with_tokenizer:
        assert (row.input_ids_T[-1] == tokenizer.eos_token_id) == (finish == "stop")


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (None, "Name it: teacher.requests=FILE"),
        ([], "holds no rows"),
        ([request("q9", "x")], "no request 'q0' in teacher.requests"),
        ([request("q0", "x"), request("q0", "y")], "line 2: a second request 'q0'"),
        ([{"custom_id": "q0"}], "line 1: no request"),
        ([{"custom_id": "q0", "body": {"messages": "hi"}}], "'messages' must hold a list of turns"),
    ],
)
def test_what_cannot_be_joined(tmp_path, requests, message):
    sent = None if requests is None else layouts.write_lines(tmp_path / "in.jsonl", requests)
    with pytest.raises(DataError, match=message):
        list(read_answers(batch(tmp_path, sent, [answered("q0", "0")])))
