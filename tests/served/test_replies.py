"""Replies of every shape, written by hand, and what is no reply."""

import math

import pytest

from distill.served._replies import SMALLEST_LOGPROB, checked, read_answer, read_tokens
from distill.served.answer import Alternative, Request, Token
from distill.served.endpoint import Endpoint
from distill.served.faults import Malformed


def reply(**choice):
    whole = {"text": "ab", "index": 0, "finish_reason": "stop", "logprobs": None, **choice}
    return {"model": "m", "choices": [whole], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def test_legacy_bytes_and_ids():
    found = read_tokens(
        {
            "tokens": ["a", "bytes:\\xe2\\x80", "token_id:12"],
            "token_logprobs": [None, -0.5, -9999.0],
            "top_logprobs": [None, {" b": -0.75, "bytes:\\xe2\\x80": -0.5}, {"token_id:3": -0.25}],
        }
    )
    assert found is not None and math.isnan(found[0].logprob) and found[0].bytes == b"a"
    assert found[1] == Token(
        None, b"\xe2\x80", -0.5, (Alternative(None, b"\xe2\x80", -0.5), Alternative(None, b" b", -0.75))
    )
    assert found[2] == Token(12, None, SMALLEST_LOGPROB, (Alternative(3, None, -0.25),))


def test_a_missing_content_is_an_empty_answer():
    found = read_answer(reply(message={"content": None}, finish_reason="length"))
    assert (found.text, found.finish, found.tokens) == ("", "length", None)


def test_an_answer_that_met_the_end_of_the_context_was_cut():
    """Mistral's own word for it; another attempt would end there again, and be paid for again."""
    assert read_answer(reply(finish_reason="model_length")).finish == "length"


def test_what_was_thought_is_no_answer():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "6 * 7 ..."}]},
        {"type": "text", "text": "It is "},
        {"type": "text", "text": "42."},
    ]
    assert read_answer(reply(message={"content": parts})).text == "It is 42."
    assert read_answer(reply(message={"content": parts[:1]})).text == ""
    with pytest.raises(Malformed):
        checked(read_answer)(reply(message={"content": ["It is 42."]}))


def test_half_of_a_character_can_be_stored():
    """JSON can name half of a surrogate pair, which no UTF-8 can: the text must not end the run when it is written."""
    for said, kept in (("so \ud83d", "so \ufffd"), ("\ude00!", "\ufffd!"), ("\ud83d\ude00", "\U0001f600")):
        text = read_answer(reply(message={"content": said})).text
        assert text == kept and text.encode()


@pytest.mark.parametrize(
    ("count", "finish", "last", "whole"),
    [
        (2, "stop", b"b", True),  # every token told
        (3, "stop", b"b", True),  # the end token is counted, and not told
        (3, "length", b"b", False),  # one is missing, and it is no end token
        (3, "stop", b"", False),  # the end token is told, so another one is missing
        (4, "stop", b"b", False),
    ],
)
def test_a_list_of_tokens_with_gaps_is_none(count, finish, last, whole):
    entries = [{"token": "x", "bytes": list(text), "logprob": -1.0, "top_logprobs": []} for text in (b"a", last)]
    content = reply(logprobs={"content": entries}, finish_reason=finish)
    content["usage"]["completion_tokens"] = count
    assert (read_answer(content).tokens is not None) is whole


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        [],
        "text",
        {"choices": []},
        {**reply(), "choices": [reply()["choices"][0]] * 2},
        {**reply(), "usage": None},
        {"error": {"message": "with status 200"}},
        reply(finish_reason=None),
        reply(logprobs={"content": [{"token": "a", "logprob": float("nan")}]}),
        reply(logprobs={"content": [{"token": "a", "logprob": 0.5}]}),
        reply(logprobs={"tokens": ["a"], "token_logprobs": []}),
    ],
)
def test_what_is_no_reply(wrong):
    with pytest.raises(Malformed):
        checked(read_answer)(wrong)


def test_the_key_of_a_request_holds_all_that_decides_the_answer():
    first = Request(token_ids=(1, 2), max_tokens=5, temperature=0.5, seed=1, sample=0)
    others = [
        Request(token_ids=(1, 3), max_tokens=5, temperature=0.5, seed=1, sample=0),
        Request(messages=({"role": "user", "content": "x"},), max_tokens=5, temperature=0.5, seed=1, sample=0),
        Request(token_ids=(1, 2), max_tokens=6, temperature=0.5, seed=1, sample=0),
        Request(token_ids=(1, 2), max_tokens=5, temperature=0.7, seed=1, sample=0),
        Request(token_ids=(1, 2), max_tokens=5, temperature=0.5, seed=2, sample=0),
        Request(token_ids=(1, 2), max_tokens=5, temperature=0.5, seed=None, sample=0),
        Request(token_ids=(1, 2), max_tokens=5, temperature=0.5, seed=1, sample=1),
    ]
    keys = [request.key("m", 3) for request in (first, *others)] + [first.key("n", 3), first.key("m", 4)]
    assert len(set(keys)) == len(keys) == 10
    assert first.key("m", 3) == Request(token_ids=(1, 2), max_tokens=5, temperature=0.5, seed=1).key("m", 3)


@pytest.mark.parametrize(
    "text",
    [
        "k: sk-proj-Zq/81_secret+value==.",
        "quoted sk-proj-Zq%2F81_secret%2Bvalue%3D%3D",
        'json "sk-proj-Zq\\/81_secret+value=="',
        "beginning sk-proj-Zq*** and end ret+value==",
    ],
)
def test_scrubbing(text):
    key = "sk-proj-Zq/81_secret+value=="
    found = Endpoint(base_url="http://host/v1", model="m", key=key).scrub(text)
    assert "***" in found and not any(key[start : start + 8] in found for start in range(len(key) - 7))
    assert found.split()[0] == text.split()[0]
    assert Endpoint(base_url="http://host/v1", model="m").scrub(text) == text
