"""SIGKILL in the middle, then the same call: only what is missing is asked for."""

import json
import signal
import subprocess
import sys
import time

from tests.conftest import ROOT, cli_environment
from tests.served.fault_proxy import FaultProxy

SCRIPT = """
import json, sys
from pathlib import Path
from distill.served.answer import Request
from distill.served.client import Served
from distill.served.endpoint import Endpoint

settings, journal, questions = json.loads(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
asked = [Request(messages=({"role": "user", "content": q},), max_tokens=64) for q in questions]
with Served(Endpoint(**settings), journal, lambda line: None) as served:
    served.answer(asked, progress=lambda units: print(units, flush=True))
"""


def test_sigkill_and_again(serve, port, model, questions, chats, texts, tmp_path):
    prices = {"price_per_million_prompt_tokens": 10.0, "price_per_million_answer_tokens": 1000.0, "max_cost": 100.0}
    with FaultProxy(port, lambda number: "drip") as proxy:
        settings = {"base_url": proxy.base_url, "model": model, "concurrency": 3, **prices}
        arguments = [json.dumps(settings), str(tmp_path / "answers.sqlite"), json.dumps(questions)]
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            cwd=ROOT,
            env={**cli_environment(), "PYTHONPATH": ":".join([str(ROOT), str(ROOT / "triton_kernels")])},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        told = 0
        while told < 15:
            told += int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        told += sum(int(line) for line in child.stdout.read().split())
        child.wait()
        child.stdout.close()
        time.sleep(1)  # what is in flight ends at the proxy, and not later as if it were new
        before = proxy.asked.copy()
        with serve(proxy.base_url, **prices) as served:
            assert served.estimate(chats).num_missing <= len(chats) - told
            missing = served.estimate(chats).num_missing
            perhaps = served.spent.perhaps
            answers = served.answer(chats)
            spent = served.spent
    assert [answer.text for answer in answers] == texts
    again = proxy.asked - before
    asked_again = [name for name in again if questions_of(name) in questions]
    assert len(asked_again) == sum(again[name] for name in asked_again) == missing
    assert 15 <= told <= len(chats) - missing <= told + 3 and missing > 10
    # At most three were in flight; what they may have cost is not forgotten.
    assert sum(before[name] for name in asked_again) <= 3
    assert perhaps > 0 if sum(before[name] for name in asked_again) else perhaps == 0
    assert spent.answer_tokens >= sum(answer.answer_tokens for answer in answers)


def questions_of(name: str) -> str | None:
    prompt = json.loads(name)[0]
    return prompt[0]["content"] if prompt and isinstance(prompt[0], dict) else None
