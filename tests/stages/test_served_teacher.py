"""The engine of served teachers, in front of a real llama.cpp and of other servers' dialects of it."""

import json
import shutil

import numpy as np
import pytest

from distill._shards import CUT
from distill.encoding import encode_prompt, encode_response, load_tokenizer
from distill.example import Example
from distill.served.answer import Alternative, Token
from distill.stages._served_teacher import identity, journal_of, open_server
from distill.stages._served_tokens import Said, TokenIds
from distill.stages.teach import NO_TARGETS
from distill.targets.top_k import TopKTargets
from tests.served.dialects import ChatOnly, Echo, Vllm
from tests.served.fault_proxy import FaultProxy, seeded
from tests.served.serving import QUICKSTART, serving
from tests.stages.served_engine import (
    NAMELESS,
    NEXT,
    TEXT,
    TOP_K,
    WITH_PROMPTS,
    filled,
    given_row,
    option,
    own_rows,
    questions,
)
from tests.stages.served_truth import check_next, check_row, logprobs


@pytest.mark.parametrize("wanted", [TOP_K, NEXT], ids=["top_k", "next"])
def test_targets_of_answers_are_those_of_transformers(llama, opened, problems, wanted):
    with opened(llama, wanted, problems[:6]) as engine:
        rows = engine.answer(questions(problems[:6]))
        assert engine.with_targets(rows) == rows  # nothing is left to score
        header = engine.header(6)
    assert (header.teacher, header.kind, header.vocab_size) == ("quickstart.gguf", wanted.kind, 640)
    for row in rows:
        truth = logprobs(QUICKSTART, row.input_ids_T)
        assert row.source == "teacher" and row.input_ids_T[-1] == 0
        assert len(row.targets) == len(row.input_ids_T) - row.prompt_length  # the end's own distribution is there
        check_row(row, truth, 20) if wanted is TOP_K else check_next(row, truth)


@pytest.mark.parametrize("wanted", [TOP_K, WITH_PROMPTS, NEXT], ids=["answer", "prompt", "next"])
def test_targets_by_scoring_are_those_of_transformers(llama, opened, problems, wanted):
    with opened(llama, wanted, problems[:2], responses="data", top_k=64) as engine:
        own = own_rows(problems[:2])
        rows = engine.with_targets(own)
        assert engine.with_targets([rows[0]]) == [rows[0]]
    for row in rows:
        truth = logprobs(QUICKSTART, row.input_ids_T)
        assert len(row.targets) == len(row.input_ids_T) - (1 if wanted is WITH_PROMPTS else row.prompt_length)
        check_row(row, truth, 64) if wanted is not NEXT else check_next(row, truth)


def with_ends(folder, *ends):
    """The teacher's tokenizer, beside settings that name these ends of an answer."""
    shutil.copytree(QUICKSTART, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ends]}))
    return str(folder)


def test_a_student_with_other_tokens_learns_of_every_end(llama, opened, problems, tmp_path):
    """Where the teacher would go on with another end, which Llama 3 and Gemma have, the answer is over for it too."""
    whole = own_rows(problems[:1])[0].input_ids_T
    ids = np.array([*whole[:-6], 0], dtype=np.int32)
    truth = logprobs(QUICKSTART, ids)[len(ids) - 2]
    other = int(truth.argmax())
    assert other != 0 and truth[0] < -3, "the answer does not end here"
    row = given_row(ids, len(ids) - 4)
    both = tmp_path / "both"
    with opened(llama, NEXT, problems[:1], responses="data", tokenizer=with_ends(both, 0, other)) as engine:
        ended = engine.with_targets([row])[0].targets.logprobs_S
    with opened(llama, NEXT, problems[:1], responses="data") as engine:
        plain = engine.with_targets([row])[0].targets.logprobs_S
    assert plain[-1] == pytest.approx(truth[0], abs=1e-3)
    assert ended[-1] == pytest.approx(np.log(np.exp(truth[0]) + np.exp(truth[other])), abs=1e-3)
    np.testing.assert_allclose(ended[:-1], plain[:-1], atol=1e-5)  # inside the answer it is a token like any other
    # answers are asked for with as many alternatives as the other ends may be among
    with opened(llama, NEXT, problems[:1], tokenizer=str(both)) as engine:
        assert engine.plan.tops == 5
    with opened(llama, NEXT, problems[:1]) as engine:
        assert engine.plan.tops == 1
    with opened(llama, TOP_K, problems[:1], tokenizer=str(both)) as engine:
        assert engine.plan.tops == 20 and engine.token_ids.ends == {0}  # its students have both tokens


@pytest.mark.parametrize("said", [0, 7], ids=["the tokenizer's", "another"])
def test_the_end_of_an_answer_is_as_likely_as_all_ends_together(said):
    tokens = TokenIds(load_tokenizer(QUICKSTART), 640, ends=(0, 7))
    probabilities = {0: 0.5, 7: 0.25, 300: 0.125}
    top = tuple(Alternative(number, None, np.log(p)) for number, p in probabilities.items())
    for among in (top, tuple(a for a in top if a.id != said)):  # a sampled end may not be among the likeliest
        tops, own = tokens.tops(Said([], [], Token(said, None, np.log(probabilities[said]), among)))
        assert own == pytest.approx([np.log(0.75)])
        assert dict(zip(*tops[0], strict=True)) == pytest.approx({0: np.log(0.75), 300: np.log(0.125)})


def test_several_ends_make_other_targets_of_spans_alone(tmp_path):
    one, two = option("http://x/v1"), option("http://x/v1", tokenizer=with_ends(tmp_path / "two", 0, 7))
    assert identity(one, "next") == identity(one, "top_k") == identity(two, "top_k")
    assert identity(two, "next") == {**identity(one, "next"), "ends": "[0, 7]"}


def test_a_sentencepiece_teacher(shared_data, opened, tmp_path, notes):
    """stories260k: bytes as a fallback, blanks at the beginning, no chat template, answers that are cut."""
    checkpoint = shared_data / "stories260k"
    rows = [Example("Once upon a time"), Example("Lily saw an é")]
    tokenizer = load_tokenizer(checkpoint)
    with (
        serving(checkpoint, tmp_path / "stories.gguf", 512) as server,
        opened(server, TOP_K, rows, tokenizer=str(checkpoint), max_new_tokens=24, keep_answers=True) as engine,
    ):
        said = engine.answer(questions(rows, tokenizer))
        prompt = encode_prompt(tokenizer, "A cat")
        ids = np.array([*prompt, *encode_response(tokenizer, "It sat on a café. The end.")], dtype=np.int32)
        own = engine.with_targets([given_row(ids, len(prompt))])
    assert [row.source for row in said] == [CUT, CUT] and own[0].input_ids_T[-1] == tokenizer.eos_token_id
    for row in [*said, *own]:
        truth = logprobs(checkpoint, row.input_ids_T)
        assert check_row(row, truth, 20) == len(row.input_ids_T) - row.prompt_length


def test_with_30_percent_faults_the_store_is_the_same(llama, opened, problems, tmp_path, notes):
    without = filled(opened, llama, TOP_K, problems, tmp_path / "without")
    journal_of(tmp_path, llama.base_url, llama.model).unlink()
    notes.clear()
    settings = {"timeout_seconds": 2.0, "max_attempts": 12, "model": llama.model}
    with FaultProxy(llama.port, seeded(4, 0.3), hang_seconds=4.0) as proxy:
        found = filled(opened, proxy, TOP_K, problems, tmp_path / "with", **settings)
        asked = {json.dumps([q.prompt_ids, 64, None, []]) for q in questions(problems)}
        assert len(asked) == len(problems) == 40
        assert [proxy.delivered[name] for name in asked] == [1] * 40
        met = proxy.met
        again = len(proxy.arrivals)
        filled(opened, proxy, TOP_K, problems, tmp_path / "again", **settings)
        names_before = sum(proxy.asked[name] for name in asked)
        assert len(proxy.arrivals) - again < 40 and names_before == sum(proxy.asked[name] for name in asked)
    assert found.header == without.header and found.summary == without.summary
    for number in range(len(found)):
        mine, other = found[number], without[number]
        assert (mine.text, mine.source, mine.key) == (other.text, other.source, other.key)
        assert isinstance(mine.targets, TopKTargets) and isinstance(other.targets, TopKTargets)
        likely = other.targets.logprobs_SK > -8
        assert (np.abs(mine.targets.logprobs_SK - other.targets.logprobs_SK)[likely] < 0.15).all()  # the 8-bit code
        assert np.abs(mine.targets.next_S - other.targets.next_S).max() < 1e-3
    assert met.total() > 10 and any("429: injected 429; again in" in line for line in notes)
    assert any("faults since the start (" in line for line in notes)
    estimate = "40 of 40 requests to ask (0 are in the journal)"
    first = next(i for i, line in enumerate(notes) if estimate in line)
    assert not any("8 answers, 8 of them" in line for line in notes[:first])


def test_text_alone_needs_no_tokenizer(llama, opened, problems, tmp_path):
    store = filled(opened, llama, TEXT, problems[:4], tmp_path / "store", tokenizer=None)
    assert store.header.kind == "text" and store.header.tokenizer_hash is None
    assert [store[n].text for n in range(4)] == [example.response for example in problems[:4]]
    assert all(store[n].input_ids_T is None for n in range(4))


def test_text_with_a_tokenizer_has_the_server_s_own_ids(llama, opened, problems, tmp_path):
    store = filled(opened, llama, TEXT, problems[:4], tmp_path / "store")
    tokenizer = load_tokenizer(QUICKSTART)
    assert store.header.kind == "tokens"
    for number in range(4):
        row, own = store[number], encode_response(tokenizer, str(problems[number].response))
        assert row.input_ids_T is not None and row.targets is None
        assert row.input_ids_T.tolist() == [*encode_prompt(tokenizer, problems[number].prompt), *own]


def test_several_samples_and_their_filters(llama, opened, problems, tmp_path):
    settings = {"samples": 3, "temperature": 2.0, "filters": ["duplicate", "final_answer"], "batch_size": 6}
    store = filled(opened, llama, TOP_K, problems[:4], tmp_path / "store", **settings)
    sources = [store[n].source for n in range(12)]
    assert len(store) == 12 and "teacher" in sources and set(sources) - {"teacher"}
    assert len({store[n].text for n in range(12) if store[n].source == "teacher"}) == sources.count("teacher")
    for number in (n for n in range(12) if sources[n] == "teacher"):
        row = store[number]
        assert row.input_ids_T is not None and isinstance(row.targets, TopKTargets)
        truth = logprobs(QUICKSTART, row.input_ids_T)
        places = range(row.prompt_length - 1, len(row.input_ids_T) - 1)
        own = [truth[place, row.input_ids_T[place + 1]] for place in places]
        assert np.abs(row.targets.next_S - own).max() < 1e-3  # at temperature 1, whatever it was sampled at


@pytest.mark.parametrize("most", [20, 5])
def test_a_chat_api_that_names_bytes_and_no_end(runtime, opened, problems, notes, most):
    with ChatOnly(runtime, most) as server, opened(server, TOP_K, problems[:3]) as engine:
        rows = engine.with_targets(engine.answer(questions(problems[:3])))
    for row in rows:
        truth = logprobs(QUICKSTART, row.input_ids_T)
        # keys and values are float16 here
        check_row(row, truth, most, but_not_last=True, nats=0.05, nameless=NAMELESS)
        assert row.input_ids_T[-1] == 0 and row.targets.token_ids_SK[-1, 0] == 0
        assert row.targets.next_S[-1] == pytest.approx(row.targets.next_S[:-1].mean(), abs=1e-5)
    assert sum("does not tell how likely the end" in line for line in notes) == 1


def test_prompt_logprobs_of_vllm(runtime, opened, problems):
    with Vllm(runtime) as server, opened(server, WITH_PROMPTS, problems[:2]) as engine:
        assert engine.context == 191  # vLLM generates one token beside the row that it scores
        rows = engine.with_targets(engine.answer(questions(problems[:2])))
        scored = [body for body in server.bodies if body.get("prompt_logprobs") == 20 and len(body["prompt"]) > 20]
        assert len(scored) == 2
    for row in rows:
        assert check_row(row, logprobs(QUICKSTART, row.input_ids_T), 20, nats=0.05) == len(row.input_ids_T) - 1


def test_an_echo_that_names_bytes(runtime, opened, problems):
    with Echo(runtime) as server, opened(server, TOP_K, problems[:2], responses="data") as engine:
        # é in two tokens, which are no text
        half = given_row(np.array([5, 132, 107, 69, 0], dtype=np.int32), 1, number=9)
        rows = engine.with_targets([*own_rows(problems[:2]), half])
    for row in rows[:2]:
        check_row(row, logprobs(QUICKSTART, row.input_ids_T), 5, nats=0.05, nameless=NAMELESS)
    assert rows[2].source == NO_TARGETS and rows[2].targets is None


def test_the_estimate_comes_before_the_first_request_and_holds(llama, opened, problems, tmp_path, notes):
    prices = {"price_per_million_prompt_tokens": 1.0, "price_per_million_answer_tokens": 2.0}
    settings = {"keep_answers": True, "model": llama.model, **prices}
    rows = [problems[0], Example(str(problems[1].prompt))]
    with FaultProxy(llama.port) as proxy:
        server = option(proxy, **settings)
        with open_server(server, TOP_K, rows, tmp_path, notes.append) as engine:
            before = engine.served.spent
            own = engine.with_targets(own_rows(rows[:1]))
            engine.answer(questions(rows)[1:])
            spent = engine.served.spent
    (asked,) = [line for line in notes if "1 of 1 requests to ask (0 are in the journal)" in line]
    (scored,) = [line for line in notes if "1 rows to score" in line]
    assert own[0].targets is not None
    positions, first = len(own[0].targets), own[0].prompt_length
    tokens = sum(range(first, first + positions))  # one request for each position, with all that lies before it
    assert f"{positions} requests, {tokens} prompt tokens and {positions} answer tokens, at most" in scored
    prompt = len(questions(rows)[1].prompt_ids or ())
    assert spent.prompt_tokens - before.prompt_tokens == tokens + prompt
    assert f"at most {prompt} prompt tokens and 64 answer tokens" in asked
