"""Requests and tokens per minute, by a clock of our own and against the real server."""

from distill.served._pace import Pace
from distill.served.answer import Request
from tests.served.fault_proxy import FaultProxy


def test_no_minute_has_more_than_allowed():
    now = [100.0]
    pace = Pace(30, clock=lambda: now[0])
    starts = []
    for _ in range(200):
        now[0] += pace.take(1)
        starts.append(now[0])
    assert starts[0] == 100.0 and abs(starts[-1] - starts[0] - 199 * 2) < 1e-6
    for start in starts:
        assert sum(start <= other < start + 60 - 1e-6 for other in starts) <= 30


def test_units_given_back_are_there_for_others_and_a_rest_saves_up_nothing():
    now = [0.0]
    pace = Pace(60, clock=lambda: now[0])
    assert [pace.take(100), pace.take(1)] == [0.0, 100.0]
    pace.give_back(90)
    assert pace.take(1) == 11.0
    now[0] = 1000.0
    assert [pace.take(1), pace.take(1)] == [0.0, 1.0]
    assert Pace(None).take(1e9) == 0.0


def test_requests_per_minute_measured(serve, port, chats):
    with FaultProxy(port) as proxy, serve(proxy.base_url, requests_per_minute=1200, concurrency=8) as served:
        served.answer(chats[:30])
    gaps = [later - earlier for earlier, later in zip(proxy.arrivals, proxy.arrivals[1:], strict=False)]
    seconds = proxy.arrivals[-1] - proxy.arrivals[0]
    # 20 a second; single requests may arrive bunched by the scheduler, the rate may not be passed.
    assert seconds >= len(gaps) / 20 - 0.1 and seconds < len(gaps) / 20 + 6


def test_tokens_per_minute_measured(serve, port):
    asked = [Request(token_ids=(3, 524, 285, 225), max_tokens=6, seed=n) for n in range(20)]
    with FaultProxy(port) as proxy, serve(proxy.base_url, concurrency=8) as served:
        first = len(proxy.arrivals)
        served._asker._tokens._seconds_per_unit = 60 / 6000  # set after the probes, which cost tokens as well
        served.answer(asked)
    # 10 tokens each at 100 a second: the last of twenty starts 1.9 s after the first.
    seconds = proxy.arrivals[-1] - proxy.arrivals[first]
    assert 1.8 <= seconds < 8
