"""What is spent, and that it never passes max_cost."""

import pytest

from distill.errors import RecipeError, StageFailed
from distill.served.endpoint import Endpoint
from tests.served.dialects import Vllm
from tests.served.fault_proxy import FaultProxy

PRICES = {"price_per_million_prompt_tokens": 2_000.0, "price_per_million_answer_tokens": 10_000.0}


def price(prompt_tokens: int, answer_tokens: int) -> float:
    return 0.002 * prompt_tokens + 0.01 * answer_tokens


def test_costs_are_those_of_the_tokens_and_outlive_the_run(serve, port, chats, prompt_ids, greedy):
    with FaultProxy(port) as proxy, serve(proxy.base_url, **PRICES) as served:
        probed = served.spent
        assert probed.cost == pytest.approx(price(probed.prompt_tokens, probed.answer_tokens)) and probed.cost > 0
        served.answer(chats[:10])
        spent = served.spent
    # The end token is generated, and billed, too.
    prompt_tokens, answer_tokens = sum(map(len, prompt_ids[:10])), sum(len(ids) + 1 for ids in greedy[:10])
    assert spent.cost - probed.cost == pytest.approx(price(prompt_tokens, answer_tokens)) and spent.perhaps == 0
    with serve(**PRICES) as served:
        assert served.spent.cost == pytest.approx(spent.cost + probed.cost)


def test_the_estimate_is_at_most_and_shrinks_to_nothing(serve, chats, log):
    with serve(**PRICES) as served:
        estimate = served.estimate(chats[:10])
        assert (estimate.num_missing, estimate.answer_tokens) == (10, 640)
        assert estimate.cost == pytest.approx(price(estimate.prompt_tokens, 640))
        before = served.spent
        served.answer(chats[:10])
        assert str(estimate) in log[-2]
        assert served.spent.prompt_tokens - before.prompt_tokens <= estimate.prompt_tokens
        assert served.spent.cost - before.cost <= estimate.cost
        again = served.estimate(chats[:10])
        assert (again.num_missing, again.prompt_tokens, again.answer_tokens, again.cost) == (0, 0, 0, 0.0)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_max_cost_stops_before_it_is_passed(serve, port, chats, texts, prompt_ids, greedy, concurrency):
    bound = max(price(chat.prompt_tokens_at_most(), 64) for chat in chats)
    with FaultProxy(port) as proxy:
        with serve(proxy.base_url, journal="probe.sqlite", **PRICES) as served:
            probed = served.spent.cost
        limit = probed + 4 * bound
        with serve(proxy.base_url, concurrency=concurrency, max_cost=limit, **PRICES) as served:
            with pytest.raises(StageFailed, match=r"max_cost is .* is spent.*kept.*of 48 requests remain") as caught:
                served.answer(chats)
            spent = served.spent
        answered = [n for n, chat in enumerate(chats) if any(chat.messages[0]["content"] in k for k in proxy.delivered)]
        # Not a request too many, and none too few: what is left would not have paid for one at its most.
        assert limit - bound < spent.cost <= limit and spent.perhaps == 0
        assert spent.cost == pytest.approx(
            probed + sum(price(len(prompt_ids[n]), len(greedy[n]) + 1) for n in answered)
        )
        assert f"{len(chats) - len(answered)} of 48 requests remain" in str(caught.value)
        before = len(proxy.arrivals)
        with serve(proxy.base_url, max_cost=1000.0, **PRICES) as served:
            probes = len(proxy.arrivals) - before
            assert [answer.text for answer in served.answer(chats)] == texts
        assert len(proxy.arrivals) - before - probes == len(chats) - len(answered)


class Wordy(Vllm):
    """A chat template with a default system prompt, as gpt-oss and SmolLM3 have one: here of 300 tokens."""

    def reply(self, path, body):
        status, reply = super().reply(path, body)
        if "messages" in (body or {}):
            reply["usage"]["prompt_tokens"] += 300
        return status, reply


def test_a_default_system_prompt_counts_into_the_limit(serve, llama_cpp, chats):
    prices = {**PRICES, "price_per_million_answer_tokens": 0.0}
    with Wordy(llama_cpp) as server:
        with serve(server.base_url, model="teacher", journal="probe.sqlite", **prices) as served:
            probed = served.spent.cost
            served.answer(chats[:6])
            spent = served.spent.cost - probed
            estimate = served.estimate(chats[6:12]).cost
            served.answer(chats[6:12])
            assert served.spent.cost - probed - spent <= estimate
        limit = probed + spent / 2
        with serve(server.base_url, model="teacher", max_cost=limit, **prices) as served:
            with pytest.raises(StageFailed, match="max_cost is"):
                served.answer(chats[:6])
            assert served.spent.cost <= limit


def test_cut_off_replies_count_as_perhaps_spent(serve, port, chats):
    with FaultProxy(port) as proxy, serve(proxy.base_url, max_cost=1000.0, **PRICES) as served:
        first = len(proxy.arrivals)
        kinds = ["half", "500", "429", "invalid_json"]
        proxy.schedule = lambda number: dict(zip(range(first, first + 4), kinds, strict=True)).get(number)
        served.answer(chats[:1])
        assert served.spent.perhaps == pytest.approx(2 * price(chats[0].prompt_tokens_at_most(), 64))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_cost": 1.0}, "both prices"),
        ({"base_url": "localhost:8000"}, "is no address"),
        ({"base_url": "https://me:hush@host/v1"}, "bare address"),
        ({"base_url": "https://host/v1?key=hush"}, "bare address"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"requests_per_minute": 0}, "more than 0"),
        ({"timeout_seconds": -1.0}, "more than 0"),
        ({"key": "two\nlines"}, "no key has"),
    ],
)
def test_settings_that_cannot_be(wrong, said):
    with pytest.raises(RecipeError, match=said) as caught:
        Endpoint(**{"base_url": "http://host/v1", "model": "m", **wrong})
    assert "hush" not in str(caught.value) and "two\nlines" not in str(caught.value)
