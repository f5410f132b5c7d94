"""Scores of given rows by all three ways, and what other servers' dialects become, against the native endpoint."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill.errors import DataError, RecipeError
from distill.served.answer import Request
from tests.served.conftest import TEACHER
from tests.served.dialects import ChatOnly, Echo, Vllm, refusal
from tests.served.fault_proxy import FaultProxy, seeded

END, HALF_CHARACTER = 0, (132, 107)
"""The end token; the two tokens that are é."""


@pytest.fixture(scope="module")
def rows(prompt_ids, greedy):
    """Question and answer, then an end token and half characters, which llama.cpp likes to swallow."""
    made = [[*prompt, *answer, END] for prompt, answer in zip(prompt_ids[:3], greedy[:3], strict=True)]
    return [*made, [*prompt_ids[3], *HALF_CHARACTER, 69, END, 24]]


@pytest.fixture(scope="module")
def wanted(rows):
    return [range(10, len(rows[0]) - 1), range(0), range(5, len(rows[2])), range(8, len(rows[3]))]


def check(found, rows, wanted, llama_cpp, number, *, by="id"):
    """Every position: the true top by the native endpoint, and the next token among them."""
    truth = llama_cpp.logprobs(rows, wanted)
    lines = iter(truth)
    assert [len(tops) for tops in found] == [len(positions) for positions in wanted]
    for row, positions, tops in zip(rows, wanted, found, strict=True):
        for position, top in zip(positions, tops, strict=True):
            line = next(lines)
            assert [a.logprob for a in top] == sorted((a.logprob for a in top), reverse=True)
            best = np.sort(line)[::-1][:number]
            assert np.abs(np.array([a.logprob for a in top[:number]]) - best).max() < 1e-3
            if by == "id":
                assert all(abs(line[a.id] - a.logprob) < 1e-3 for a in top)
                assert len({a.id for a in top}) == len(top)
                following = row[position + 1] if position + 1 < len(row) else None
                assert following is None or following in [a.id for a in top]
                assert len(top) in (number, number + 1)


def test_stepwise_by_llama_cpp(serve, llama_cpp, rows, wanted, log):
    with serve() as served:
        found = served.score(rows, wanted, 7)
        spent = served.spent
        assert served.score(rows, wanted, 7) == found and served.spent == spent
    check(found, rows, wanted, llama_cpp, 7)


def test_float32_scores_are_those_of_transformers(serve, rows, wanted, tmp_path):
    """The teacher's own float32 weights on both sides, so that only the two engines and the wire are between them."""
    import torch
    from transformers import AutoModelForCausalLM

    from distill.compression._gguf import write_gguf
    from distill.compression._gguf_mixture import Mixture

    file = tmp_path / "float32.gguf"
    write_gguf(TEACHER, file, Mixture("ALL_F32", lambda name, outline: "F32"))
    options = {"file": str(file), "num_threads": 1, "context": 192, "num_slots": 4}
    child = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("float32_server.py")), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with child:  # closes its pipe at the end, and with it the server
        assert child.stdout is not None
        address = json.loads(child.stdout.readline())["address"]
        with serve(f"{address}/v1", model=str(file), journal="float32.sqlite") as served:
            found = served.score(rows, wanted, 64)
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    differences, num_positions = [], 0
    for row, positions, tops in zip(rows, wanted, found, strict=True):
        with torch.no_grad():
            truth = model(torch.tensor([row])).logits[0].double().log_softmax(-1).numpy()
        for position, top in zip(positions, tops, strict=True):
            differences += [abs(truth[position, a.id] - a.logprob) for a in top if a.logprob > -20]
            num_positions += 1
    assert num_positions == sum(map(len, wanted)) > 100 and max(differences) < 1e-3


def test_stepwise_through_faults(serve, port, llama_cpp, rows, wanted):
    with FaultProxy(port, seeded(1, 0.3)) as proxy:
        with serve(proxy.base_url, timeout_seconds=1.0, max_attempts=12) as served:
            found = served.score(rows, wanted, 7)
        assert proxy.met.total() > 10
    check(found, rows, wanted, llama_cpp, 7)


def test_prompt_logprobs_of_vllm(serve, llama_cpp, rows, wanted):
    with Vllm(llama_cpp) as server, serve(server.base_url, model="teacher") as served:
        able = served.capabilities
        assert (able.chat_logprobs, able.completion_logprobs, able.score_logprobs) == (20, 20, 20)
        assert able.ids and not able.bytes and able.extensions and able.context_tokens == 192
        assert able.scoring == "prompt_logprobs"
        before = len(server.bodies)
        found = served.score(rows, wanted, 7)
        assert len(server.bodies) - before == 4  # one for each row
    check(found, rows, wanted, llama_cpp, 7)


def test_echo_of_legacy_completions(serve, llama_cpp, rows, wanted):
    words = [row for row in rows if HALF_CHARACTER[0] not in row]  # as text two halves of a character are the same
    positions = [range(w.start, min(w.stop, len(row) - 2)) for row, w in zip(words, wanted, strict=False)]
    with Echo(llama_cpp) as server, serve(server.base_url, model="teacher") as served:
        able = served.capabilities
        assert (able.models, able.chat, able.completion_logprobs, able.ids) == (None, False, 5, False)
        assert able.bytes and not able.extensions and able.scoring == "echo" and able.token_prompts
        found = served.score(words, positions, 5)
        with pytest.raises(RecipeError, match="no chat endpoint"):
            served.answer([Request(messages=({"role": "user", "content": "x"},), max_tokens=1)])
    check(found, words, positions, llama_cpp, 5, by="bytes")
    for row, wanted_positions, tops in zip(words, positions, found, strict=True):
        for position, top in zip(wanted_positions, tops, strict=True):
            text = llama_cpp._ask("POST", "/detokenize", {"tokens": [row[position + 1]]})["content"]
            assert text.encode() in [a.bytes for a in top]


@pytest.mark.parametrize("most", [20, 5])
def test_a_chat_api_with_few_log_probabilities(
    serve, llama_cpp, chats, texts, greedy, token_logprobs, prompt_ids, most
):
    with ChatOnly(llama_cpp, most) as server, serve(server.base_url, model="teacher") as served:
        able = served.capabilities
        assert (able.chat_logprobs, able.completions, able.limit_name) == (most, False, "max_completion_tokens")
        assert able.bytes and not able.ids and able.scoring is None
        answers = served.answer(chats[:4], top_logprobs=most)
        with pytest.raises(RecipeError, match="cannot score rows"):
            served.score([[1, 2]], [range(1)], 1)
        with pytest.raises(RecipeError, match="no token ids as prompts"):
            served.answer([Request(token_ids=(1,), max_tokens=1)])
    for number, answer in enumerate(answers):
        truth = token_logprobs(prompt_ids[number], (*greedy[number], END))
        assert answer.text == texts[number] and answer.tokens is not None
        assert [t.id for t in answer.tokens] == [None] * len(greedy[number])
        assert b"".join(t.bytes for t in answer.tokens).decode() == texts[number]
        for token, line in zip(answer.tokens, truth, strict=False):
            assert np.abs(np.array([a.logprob for a in token.top]) - np.sort(line)[::-1][:most]).max() < 1e-3


def test_an_endpoint_without_log_probabilities(serve, llama_cpp, chats, texts):
    with ChatOnly(llama_cpp, 0) as server, serve(server.base_url, model="teacher") as served:
        assert served.capabilities.most_logprobs == 0 and "no log-probabilities" in str(served.capabilities)
        before = len(server.bodies)
        with pytest.raises(RecipeError, match=r"gives no log-probabilities, and 5 per token are wanted.*loss=text"):
            served.answer(chats[:2], top_logprobs=5)
        assert len(server.bodies) == before
        assert [answer.text for answer in served.answer(chats[:2])] == texts[:2]


def test_vllm_answers_by_ids(serve, llama_cpp, chats, prompt_ids, texts, greedy):
    asked = [*chats[:3], *(Request(token_ids=ids, max_tokens=64) for ids in prompt_ids[:3])]
    with Vllm(llama_cpp) as server, serve(server.base_url, model="teacher") as served:
        answers = served.answer(asked, top_logprobs=3)
        sent = server.bodies[-1]
    assert [answer.text for answer in answers] == texts[:3] * 2
    assert [[t.id for t in answer.tokens] for answer in answers] == [[*ids, END] for ids in greedy[:3]] * 2
    assert (sent["top_k"], sent["min_p"], sent["top_p"]) == (-1, 0.0, 1.0)


class Choosy(Vllm):
    """Takes fields that it does not know, and refuses a top_k below 0, as OpenRouter's schema has it."""

    def reply(self, path, body):
        if (body or {}).get("top_k", 0) < 0:
            return refusal("top_k: Input should be greater than or equal to 0", 422)
        return super().reply(path, body)


def test_an_endpoint_that_refuses_to_be_told_of_no_cut_offs(serve, llama_cpp, chats, texts):
    with Choosy(llama_cpp) as server, serve(server.base_url, model="teacher") as served:
        assert not served.capabilities.extensions
        assert [answer.text for answer in served.answer(chats[:2])] == texts[:2]


def test_rows_that_cannot_be_scored(serve):
    with serve() as served:
        with pytest.raises(DataError, match="row 0 has 3 tokens"):
            served.score([[1, 2, 3]], [range(2, 4)], 5)
        with pytest.raises(DataError, match=r"row 0 needs room for 301 tokens.* has 192"):
            served.score([[1] * 300], [range(300)], 5)
        with pytest.raises(RecipeError, match="1 to 640"):
            served.score([[1, 2, 3]], [range(2)], 700)
