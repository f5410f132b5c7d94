"""What an endpoint cannot do, or does not do: a clear message or a row left out, and nothing lost."""

import contextlib
import json
import math
import threading
from typing import Any

import pytest

from distill._shards import CUT
from distill.artifact import locked
from distill.encoding import encode_response, load_tokenizer
from distill.errors import RecipeError, StageFailed, TargetMismatch
from distill.example import Example
from distill.responses import TeacherResponses
from distill.stages._served_teacher import journal_of
from distill.stages.teach import TOO_LONG, WITHHELD, Wanted, ask
from tests.served.dialects import ChatOnly, Vllm
from tests.served.serving import QUICKSTART
from tests.stages.served_engine import (
    NEXT,
    TEXT,
    TOP_K,
    WITH_PROMPTS,
    filled,
    option,
)


@pytest.mark.parametrize(
    ("wanted", "settings", "said"),
    [
        (TOP_K, {"responses": "data"}, "cannot score text that it did not write"),
        (TOP_K, {"keep_answers": True}, "cannot score text that it did not write"),
        (WITH_PROMPTS, {}, r"training\.prompt_weight=0"),
    ],
)
def test_what_needs_scoring_is_refused_where_there_is_none(runtime, opened, problems, wanted, settings, said):
    with (
        ChatOnly(runtime, 20) as server,
        pytest.raises(RecipeError, match=rf"{said}.*rows cannot be scored"),
        opened(server, wanted, problems[:3], **settings),
    ):
        pass


def test_on_policy_needs_scoring_too(runtime, opened):
    with (
        ChatOnly(runtime, 20) as server,
        pytest.raises(RecipeError, match=r"training\.on_policy=0"),
        opened(server, TOP_K, (), on_policy=True),
    ):
        pass


def test_an_endpoint_without_log_probabilities(runtime, opened, problems, tmp_path):
    with ChatOnly(runtime, 0) as server:
        with pytest.raises(RecipeError, match=r"gives no log-probabilities.*loss=text"), opened(server, TOP_K):
            pass
        store = filled(opened, server, TEXT, problems[:2], tmp_path / "store")
    tokenizer = load_tokenizer(QUICKSTART)
    for number in range(2):
        ids = store[number].input_ids_T
        own = encode_response(tokenizer, str(problems[number].response))
        assert ids is not None and store.header.kind == "tokens" and ids.tolist()[-len(own) :] == own


class Strange(ChatOnly):
    """Says nothing, withholds, or refuses what is too long, by the words in the prompt."""

    def reply(self, path: str, body: Any) -> tuple[int, Any]:
        status, reply = super().reply(path, body)
        said = json.dumps(body or {})
        if "EMPTY" in said:
            reply["choices"][0]["message"]["content"] = ""
        elif "WITHHELD" in said:
            reply["choices"][0] |= {"finish_reason": "content_filter"}
        elif "REFUSED" in said:  # as Azure does, with a type of null
            message = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
            return 400, {"error": {"message": message, "type": None, "param": "prompt", "code": "content_filter"}}
        elif "LONG" in said:
            return 400, {"error": {"message": "This model's maximum context length is 192 tokens."}}
        return status, reply


def test_empty_withheld_and_too_long(runtime, opened, tmp_path):
    rows = [Example(word, None) for word in ("EMPTY", "How many?", "WITHHELD", "LONG", "LONG LONG", "REFUSED")]
    with Strange(runtime, 20) as server:
        store = filled(opened, server, TEXT, rows, tmp_path / "store", tokenizer=None)
    assert [store[n].source for n in (0, 2, 3, 4, 5)] == ["empty", WITHHELD, TOO_LONG, TOO_LONG, WITHHELD]
    assert store[1].source in {"teacher", CUT}
    said = (tmp_path / "store" / "notes.json").read_text()
    assert "2 answers of teacher were withheld by the server's own filter" in said and "2 prompts do not fit" in said


def test_a_response_longer_than_the_context(llama, opened, problems, tmp_path):
    long = Example("How many? " * 40, None)
    longer = Example("How many? " * 100, None)
    store = filled(opened, llama, TOP_K, [long, longer, problems[0]], tmp_path / "store", max_new_tokens=500)
    assert store[1].source == TOO_LONG and store[2].source == "teacher"
    ids, cut = store[0].input_ids_T, store[0].source
    assert cut in {CUT, "teacher"} and ids is not None and len(ids) <= 192
    scored = filled(
        opened, llama, NEXT, [Example("x", "1, " * 300)], tmp_path / "scored", responses="data", max_new_tokens=500
    )
    ids, targets = scored[0].input_ids_T, scored[0].targets
    assert ids is not None and targets is not None
    assert len(ids) == 192 and len(targets) == 192 - scored[0].prompt_length


def test_another_tokenizer_is_refused(llama, opened, tmp_path, shared_data):
    other = str(shared_data / "stories260k")
    with pytest.raises(TargetMismatch) as error, opened(llama, TOP_K, tokenizer=other):
        pass
    assert "stories260k" in str(error.value) and llama.model in str(error.value) and "loss=text" in str(error.value)


def test_another_tokenizer_of_the_same_size_is_refused(runtime, opened, tmp_path, problems):
    """By ids and by bytes: a tokenizer whose tokens are the same words in another order, or other words."""
    from distill.encoding import train_tokenizer

    folder = tmp_path / "other"
    train_tokenizer((str(example.prompt)[::-1].upper() for example in problems), 600).save_pretrained(folder)
    with Vllm(runtime) as server, pytest.raises(TargetMismatch, match="do not speak the same tokens"):
        opened(server, TOP_K, tokenizer=str(folder)).__enter__()
    with (
        ChatOnly(runtime, 20) as server,
        pytest.raises(TargetMismatch, match=r"is \d+ tokens at the endpoint|none like it"),
    ):
        opened(server, TOP_K, tokenizer=str(folder)).__enter__()


def test_a_model_that_is_not_there(llama, opened):
    with pytest.raises(RecipeError, match=r"has no model 'gpt-9'.*It has: .*quickstart\.gguf"):
        opened(llama, TEXT, model="gpt-9").__enter__()


def test_a_server_that_is_not_there(opened):
    with pytest.raises(RecipeError, match=r"127\.0\.0\.1:9/v1 cannot be reached"):
        opened("http://127.0.0.1:9/v1", TEXT).__enter__()


def test_a_journal_in_use_is_waited_for(llama, opened, tmp_path, notes):
    journal = journal_of(tmp_path, llama.base_url, llama.model)
    free = threading.Event()
    with contextlib.ExitStack() as held:
        held.enter_context(locked(journal.with_name(journal.name + ".lock")))
        notes_said = threading.Thread(target=lambda: (free.wait(10), held.close()))
        notes_said.start()
        threading.Timer(0.3, free.set).start()
        with opened(llama, TEXT):
            notes_said.join()
    assert any("is in use by another process; waiting for it" in line for line in notes)


def test_another_temperature_is_refused(llama, opened):
    with pytest.raises(TargetMismatch, match=r"loss\.temperature=1\."):
        opened(llama, Wanted("top_k", False, 2.0, 0)).__enter__()


class Tempered(ChatOnly):
    """As SGLang by itself: log-probabilities of what it samples from, at 0 those of temperature 1."""

    def native(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        reply = super().native(body, 4096)
        for entry in reply["choices"][0]["logprobs"]["content"]:
            logits = {top["id"]: top["logprob"] / (body.get("temperature") or 1.0) for top in entry["top_logprobs"]}
            mass = math.fsum(map(math.exp, logits.values()))
            entry["top_logprobs"] = [
                top | {"logprob": logits[top["id"]] - math.log(mass)} for top in entry["top_logprobs"][:number]
            ]
            entry["logprob"] = logits[entry["id"]] - math.log(mass)
        return reply


def test_log_probabilities_of_the_sampling_are_no_targets(runtime, opened, problems, tmp_path):
    """A server that says 2 ln p - ln Z at temperature 0.5 would else be stored as if it had said ln p."""
    with Tempered(runtime, 20) as server:
        for temperature in (0.5, 0.9, 2.0):
            with pytest.raises(TargetMismatch, match=r"that it samples at; .*temperature=1 or 0, or loss"):
                opened(server, TOP_K, temperature=temperature).__enter__()
        for temperature in (0.0, 1.0):
            with opened(server, TOP_K, temperature=temperature):
                pass
        assert len(filled(opened, server, TEXT, problems[:2], tmp_path / "store", temperature=0.9)) == 2
    for dialect in (ChatOnly(runtime, 20), Vllm(runtime)):  # theirs are at 1, whatever they sample at
        with dialect as server, opened(server, TOP_K, temperature=0.5):
            pass


class One(ChatOnly):
    """Gives one log-probability for each token, however many are asked for."""

    def native(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        return super().native(body, 1)


def test_one_log_probability_does_not_show_its_temperature(runtime, opened):
    with One(runtime, 20) as server, pytest.raises(TargetMismatch, match="do not show at which temperature they are"):
        opened(server, TOP_K, temperature=0.5).__enter__()


def test_the_money_is_a_hard_limit(llama, opened, problems, tmp_path):
    prices = {"price_per_million_prompt_tokens": 0.0, "price_per_million_answer_tokens": 1e6, "max_cost": 160.0}
    with pytest.raises(StageFailed, match=r"max_cost is 160.*larger max_cost to go on"):
        filled(opened, llama, TEXT, problems[:8], tmp_path / "a", **prices)
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()
    more = {**prices, "max_cost": 1000.0}
    ask(option(llama, **more), opened(llama, TEXT, problems[:8], **more), problems[:8], tmp_path / "a")
    assert len(TeacherResponses(tmp_path / "a")) == 8
