"""Served against a real llama.cpp server: the same answers, ids and log-probabilities as by its native endpoint."""

import numpy as np
import pytest

from distill.errors import DataError, DistillError, RecipeError, StageFailed
from distill.served.answer import Request
from distill.served.faults import PromptsTooLong
from tests.served.fault_proxy import ECHO, FaultProxy

END = 0
"""The teacher's end token."""


def test_capabilities_of_llama_cpp(serve, model, log):
    with serve() as served:
        able = served.capabilities
    assert (able.models, able.vocab_size, able.context_tokens) == ((model,), 640, 192)
    assert able.chat and able.completions and able.token_prompts and able.ids and able.bytes and able.extensions
    assert (able.chat_logprobs, able.completion_logprobs) == (640, 640)
    assert (able.scoring, able.score_logprobs) == ("stepwise", 640)
    assert len(log) == 1 and "640 log-probabilities per token (the whole vocabulary)" in log[0]


def test_chat_and_token_prompts_answer_as_the_native_endpoint(serve, chats, prompt_ids, greedy, texts, token_logprobs):
    asked = [Request(token_ids=ids, max_tokens=64) for ids in prompt_ids[:12]]
    with serve() as served:
        by_chat = served.answer(chats[:12], top_logprobs=640)
        by_ids = served.answer(asked, top_logprobs=640)
    for number, (chat, ids) in enumerate(zip(by_chat, by_ids, strict=True)):
        for answer in (chat, ids):
            assert (answer.text, answer.finish) == (texts[number], "stop")
            assert answer.tokens is not None and [t.id for t in answer.tokens] == [*greedy[number], END]
            assert b"".join(t.bytes for t in answer.tokens).decode() == answer.text
            assert (answer.prompt_tokens, answer.answer_tokens) == (len(prompt_ids[number]), len(greedy[number]) + 1)
            truth = token_logprobs(prompt_ids[number], (*greedy[number], END))
            found = np.full_like(truth, np.nan)
            for position, token in enumerate(answer.tokens):
                found[position, [a.id for a in token.top]] = [a.logprob for a in token.top]
                assert token.logprob == found[position, token.id] == token.top[0].logprob
            # Batches of another size add up in another order.
            assert np.abs(found - truth)[truth > -30].max() < 1e-3 and not np.isnan(found).any()


def test_answers_keep_the_callers_order_and_equal_requests_are_one(serve, port, chats, texts):
    order = [5, 2, 5, 9, 0, 2]
    done: list[int] = []
    with FaultProxy(port) as proxy, serve(proxy.base_url) as served:
        before = len(proxy.arrivals)
        answers = served.answer([chats[number] for number in order], progress=done.append)
        assert len(proxy.arrivals) - before == 4
    assert [answer.text for answer in answers] == [texts[number] for number in order]
    assert sum(done) == len(order)
    assert all(answer.tokens is None for answer in answers)


def test_samples_are_drawn_whole_and_repeatably(serve, llama_cpp):
    """With everything cut off but the likeliest 40, as llama.cpp would, tokens of rank 41 and beyond never come."""
    prompt = (3, 524, 285, 225)
    asked = [Request(token_ids=prompt, max_tokens=1, temperature=3.0, seed=7, sample=n) for n in range(150)]
    with serve() as served, serve(journal="again.sqlite") as again:
        drawn = [answer.text for answer in served.answer(asked)]
        assert drawn[:40] == [answer.text for answer in again.answer(asked[:40])]
    (logprobs,) = llama_cpp.logprobs([prompt], [[len(prompt) - 1]])
    tempered = np.exp(logprobs.astype(np.float64) / 3)
    tempered /= tempered.sum()
    order = np.argsort(-tempered)
    best = [llama_cpp._ask("POST", "/detokenize", {"tokens": [int(i)]})["content"] for i in order[:40]]
    share, expected = 1 - np.isin(drawn, best).mean(), tempered[order[40:]].sum()
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(drawn)) and expected > 0.2


def test_characters_of_several_tokens_come_without_a_list_of_tokens(serve, port, monkeypatch, log):
    """llama.cpp then tells fewer tokens than it counted; a list with gaps must not look like a whole one."""
    from distill.served import client

    grammar = {"grammar": 'root ::= "aé€b"'}
    monkeypatch.setattr(client, "PLAIN_SAMPLING", {**client.PLAIN_SAMPLING, **grammar})
    with serve() as served:
        (answer,) = served.answer([Request(token_ids=(3, 524), max_tokens=20)], top_logprobs=2)
    assert answer.text == "aé€b" and answer.answer_tokens == 8 and answer.tokens is None
    assert "1 came without a log-probability for every token" in log[-1]


def test_prompts_that_are_too_long_are_named_and_the_others_kept(serve, port, chats, texts):
    long = Request(messages=({"role": "user", "content": "apples " * 300},), max_tokens=64)
    with FaultProxy(port) as proxy, serve(proxy.base_url) as served:
        with pytest.raises(PromptsTooLong, match=r"2 of 6 requests, the first being number 1.*192") as caught:
            served.answer([chats[0], long, chats[1], chats[2], long, chats[3]])
        assert caught.value.indices == (1, 4) and isinstance(caught.value, DataError)
        before = len(proxy.arrivals)
        assert [answer.text for answer in served.answer(chats[:4])] == texts[:4]
        assert len(proxy.arrivals) == before


def test_a_wrong_key_is_said_and_never_shown(serve, port, tmp_path, log):
    key = "sk-proj-Zq/81_secret+value=="
    with FaultProxy(port) as proxy:
        proxy.refuse_key = f"Incorrect API key provided: {key[:12]}... in full {key}; header was"
        served = serve(proxy.base_url, key=key)
        with pytest.raises(RecipeError, match=r"refuses the key \(401: Incorrect API key") as caught, served:
            pass
        assert proxy.headers["authorization"] == f"Bearer {key}"  # it was sent, and echoed
    error: BaseException | None = caught.value
    shown = [repr(served.endpoint), str(served.endpoint), *log]
    while error is not None:
        shown.append(repr(error))
        error = error.__cause__ or error.__context__
    shown += [file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()]
    for text in shown:
        assert not any(key[start : start + 8] in text for start in range(len(key) - 7)), text
    assert "Needed: a key" in str(caught.value) and log


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_key_echoed_later_is_never_shown(status, serve, port, chats, tmp_path, log):
    key = "sk-proj-Zq/81_secret+value=="
    with FaultProxy(port) as proxy, serve(proxy.base_url, key=key, max_attempts=2) as served:
        proxy.schedule = lambda number: ECHO
        (answer,) = served.answer(chats[:1])
        assert answer.text.endswith("Bearer ***")
        proxy.refuse_key, proxy.refuse_status = f"we do not like {key}", status
        with pytest.raises(DistillError, match=r"we do not like \*\*\*") as caught:
            served.answer(chats[1:4])
    shown = [repr(caught.value), repr(caught.value.__context__), repr(caught.value.__cause__), *log]
    shown += [file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()]
    assert not [text for text in shown if key in text or "secret" in text]
    assert any("we do not like" in line for line in log)


@pytest.mark.parametrize("key", ["0", "e", "stop", "ollama", "EMPTY"])
def test_a_word_in_the_place_of_a_key_stays_in_answers(key, serve, chats, texts):
    """Servers without keys are given any: a key that is a digit must not make every reply unreadable."""
    with serve(key=key) as served:
        assert [answer.text for answer in served.answer(chats[:2], top_logprobs=3)] == texts[:2]


def test_no_more_than_concurrency_at_once(serve, port, chats):
    with FaultProxy(port, lambda number: "drip") as proxy, serve(proxy.base_url, concurrency=3) as served:
        served.answer(chats[:12])
        assert proxy.most_in_flight == 3


def test_no_secret_of_the_environment_is_sent(serve, port, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "meant-for-openai")
    with FaultProxy(port) as proxy, serve(proxy.base_url):
        assert not [name for name, value in proxy.headers.items() if "meant-for-openai" in value]


def test_an_unreachable_server(serve, port):
    with FaultProxy(port) as proxy:
        gone = proxy.base_url
    with pytest.raises(RecipeError, match=r"cannot be reached.*Is the server running"), serve(gone):
        pass


def test_a_model_that_the_server_does_not_have(serve, model):
    with pytest.raises(RecipeError, match=r"no model 'gpt-9000'. It has: .*gguf") as caught, serve(model="gpt-9000"):
        pass
    assert model in str(caught.value)


def test_what_the_endpoint_cannot_do_is_refused_before_any_request(serve, port):
    with FaultProxy(port) as proxy, serve(proxy.base_url) as served:
        before = len(proxy.arrivals)
        with pytest.raises(RecipeError, match="1 to 640 log-probabilities per token, and 641 are wanted"):
            served.answer([Request(token_ids=(1,), max_tokens=1)], top_logprobs=641)
        with pytest.raises(DataError, match="exactly one"):
            Request(max_tokens=3)
        with pytest.raises(DataError, match="empty"):
            Request(token_ids=(), max_tokens=3)
        assert len(proxy.arrivals) == before


def test_a_server_that_dies_stops_the_run_with_everything_kept(serve, port, chats, texts, log):
    proxy = FaultProxy(port)
    with proxy, serve(proxy.base_url, max_attempts=2, concurrency=1) as served:
        served.answer(chats[:3])
        proxy.schedule = lambda number: "503"
        with pytest.raises(StageFailed, match=r"503: injected 503.*kept.*5 of 8 requests remain"):
            served.answer(chats[:8])
        proxy.schedule = lambda number: None
        before = len(proxy.arrivals)
        assert [answer.text for answer in served.answer(chats[:8])] == texts[:8]
        assert len(proxy.arrivals) - before == 5


def test_a_journal_that_is_none_and_one_that_cannot_be_written(serve, tmp_path):
    (tmp_path / "notes.txt").write_text("these are my notes, and no journal at all\n" * 100)
    with pytest.raises(RecipeError, match="is no journal"), serve(journal="notes.txt"):
        pass
    assert (tmp_path / "notes.txt").read_text().startswith("these are my notes")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(StageFailed, match="cannot be opened"), serve(journal="folder"):
        pass
