"""Thirty requests of a hundred go wrong, and nothing else is different."""

import collections
import json
import re

import pytest

from distill.served import _asker
from distill.served.faults import retry_after_seconds, status_fault
from tests.served.fault_proxy import HARMLESS, KINDS, FaultProxy, request_name, seeded

SAID = {
    "429": "429: injected 429; again in .* as the server asked",
    "500": "500: injected 500",
    "503": "503: injected 503",
    "reset": "connection lost",
    "hang": "no reply within 2.5 s",
    "half": "connection lost",
    "invalid_json": "malformed reply: half of a JSON or none",
    "wrong_choices": "malformed reply: [02] choices instead of 1",
    "empty": "malformed reply: an empty body",
}


def test_with_30_percent_faults_the_answers_are_the_same(serve, port, chats, texts, greedy, log):
    with serve(journal="without.sqlite") as served:
        without = served.answer(chats, top_logprobs=5)
    log.clear()
    with (
        FaultProxy(port, seeded(4, 0.3)) as proxy,
        serve(proxy.base_url, timeout_seconds=2.5, max_attempts=12) as served,
    ):
        found = served.answer(chats, top_logprobs=5)
        table = served._journal._database.execute("SELECT COUNT(*), COUNT(DISTINCT key) FROM answers").fetchone()
    assert [answer.text for answer in found] == [answer.text for answer in without] == texts
    for mine, other, ids in zip(found, without, greedy, strict=True):
        assert mine.tokens is not None and other.tokens is not None
        assert [t.id for t in mine.tokens] == [t.id for t in other.tokens] == [*ids, 0]
        assert all(abs(a.logprob - b.logprob) < 1e-3 for a, b in zip(mine.tokens, other.tokens, strict=True))

    names = [_name(request) for request in chats]
    assert table == (len(chats), len(chats))
    assert [proxy.delivered[name] for name in names] == [1] * len(chats)

    share = proxy.met.total() / len(proxy.arrivals)
    assert 0.2 < share < 0.4 and set(proxy.met) == set(KINDS), proxy.met
    told = collections.Counter(kind for kind, words in SAID.items() for line in log if re.search(words, line))
    for kind in SAID:
        same_words = [other for other in SAID if SAID[other] == SAID[kind]]
        assert told[kind] == sum(proxy.met[other] for other in same_words), (kind, log)
    harmful = proxy.met.total() - proxy.met[HARMLESS]
    assert f"{harmful} faults since the start (" in log[-1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != HARMLESS])
def test_each_fault_alone_is_outlived_and_said(kind, serve, port, chats, texts, log):
    with FaultProxy(port) as proxy, serve(proxy.base_url, timeout_seconds=2.5, concurrency=1) as served:
        first = len(proxy.arrivals)
        proxy.schedule = lambda number: kind if number == first else None
        (answer,) = served.answer(chats[:1])
    assert answer.text == texts[0]
    assert proxy.asked[_name(chats[0])] == 2 and proxy.delivered[_name(chats[0])] == 1
    assert len([line for line in log if re.search(rf"attempt 1 of 8: {SAID[kind]}", line)]) == 1


def test_a_slow_reply_is_waited_for(serve, port, chats, texts, log):
    with FaultProxy(port, lambda number: "drip") as proxy, serve(proxy.base_url, timeout_seconds=5) as served:
        assert [answer.text for answer in served.answer(chats[:4])] == texts[:4]
    assert not any("attempt" in line for line in log)


def test_retry_after_is_obeyed_by_every_worker(serve, port, chats):
    with FaultProxy(port) as proxy, serve(proxy.base_url, concurrency=4) as served:
        first = len(proxy.arrivals)
        proxy.retry_after = "1"
        proxy.schedule = lambda number: "429" if number == first else None
        served.answer(chats[:16])
        times = [time - proxy.arrivals[first] for time in proxy.arrivals[first:]]
    # The three in flight beside it may come through before the refusal is known.
    assert sum(time < 1.0 for time in times) <= 4 + 3, times
    assert not any(0.5 < time < 1.0 for time in times), times


def test_retry_after_in_seconds_and_as_a_date():
    import email.utils
    import time

    assert retry_after_seconds({"retry-after": "7"}) == 7 and retry_after_seconds({"retry-after": "-3"}) == 0
    later = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert retry_after_seconds({"retry-after": later}) == pytest.approx(59, abs=2)
    assert retry_after_seconds({"retry-after": email.utils.formatdate(0, usegmt=True)}) == 0
    assert all(retry_after_seconds({"retry-after": text}) is None for text in ("soon", "nan", "inf", ""))
    assert retry_after_seconds({}) is None


@pytest.mark.parametrize(
    ("status", "body", "retry"),
    [
        (408, "", True),
        (409, "", True),
        (429, "{}", True),
        (429, json.dumps({"error": {"code": "insufficient_quota", "message": "pay"}}), False),
        (500, "<html>oops</html>", True),
        (502, "", True),
        (529, "", True),
        (400, "", False),
        (401, "", False),
        (403, "", False),
        (404, "", False),
        (422, "", False),
        (501, "", False),
    ],
)
def test_which_statuses_are_tried_again(status, body, retry):
    assert status_fault(status, body, {}).retry is retry


@pytest.mark.parametrize(
    ("said", "too_long"),
    [
        ("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens", True),
        ("request (900 tokens) exceeds the available context size (192 tokens), try increasing it", True),
        ("The decoder prompt (length 900) is longer than the maximum model length of 512.", True),
        ("Input is too long for requested model.", True),
        ("Unsupported value: 'temperature' does not support 0 with this model.", False),
    ],
)
def test_what_servers_say_of_a_prompt_that_is_too_long(said, too_long):
    assert status_fault(400, json.dumps({"error": {"message": said}}), {}).too_long is too_long


def test_a_server_that_asks_for_hours_is_left_alone(serve, port, chats, log):
    from distill.errors import StageFailed

    with FaultProxy(port) as proxy, serve(proxy.base_url) as served:
        proxy.retry_after = "7200"
        proxy.schedule = lambda number: "429"
        with pytest.raises(StageFailed, match="429"):
            served.answer(chats[:1])
    assert "given up" in log[-1] and _asker.LONGEST_RETRY_AFTER_SECONDS < 7200


def _name(request) -> str:
    body = {"messages": list(request.messages), "max_tokens": request.max_tokens}
    return request_name(json.dumps(body).encode())
