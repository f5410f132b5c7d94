"""What a teacher in this process answers and says of each token, against plain transformers in float64."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill._shards import CUT, Row
from distill.encoding import encode_prompt, encode_response, template_hash, tokenizer_hash
from distill.errors import RecipeError
from distill.example import Example
from distill.stages._local_teacher import keep_ids, name_of
from distill.targets.top_k import logprob_bound
from distill.teacher.hf import Hf
from tests.stages.asking import DRAWS, EXAMPLES, KEPT, another, asked, engine_of, notes_of, wanted


@pytest.fixture(scope="module")
def untied(tiny_teacher, tmp_path_factory):
    return another(tiny_teacher, tmp_path_factory.mktemp("untied"), hidden_size=32, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher):
    return AutoTokenizer.from_pretrained(tiny_teacher)


@pytest.fixture(scope="module")
def logits_of(tiny_teacher):
    """Token ids of one row, without padding → float64 logits [T, V]."""
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float64).eval()

    @torch.no_grad()
    def logits(ids):
        return model(torch.tensor(np.asarray(ids)).long()[None]).logits[0].numpy()

    return logits


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def rows_of(tokenizer, examples=EXAMPLES):
    rows = []
    for n, example in enumerate(examples):
        prompt = encode_prompt(tokenizer, example.prompt)
        ids = np.array(prompt + encode_response(tokenizer, example.response), np.int32)
        rows.append(Row(n, example.response, "data", ids, len(prompt)))
    return rows


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("prompt_targets", [False, True])
@pytest.mark.parametrize("kind", ["sampled", "top_k", "dense", "frozen_head", "next"])
def test_targets_are_those_of_the_model_in_float64(
    kind, prompt_targets, temperature, tiny_teacher, untied, logits_of, tokenizer, tmp_path
):
    want = wanted(kind, prompt_targets=prompt_targets, temperature=temperature)
    head_VD = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float64).lm_head.weight.detach().numpy()
    rows = rows_of(tokenizer)
    with engine_of(tiny_teacher, tmp_path, want, head=untied if kind == "frozen_head" else None) as engine:
        said = engine.with_targets(rows)  # all in one padded batch
        header = engine.header(len(rows))
    tempered = temperature if kind in {"sampled", "top_k", "frozen_head"} else 1.0
    kept = {"sampled": DRAWS, "top_k": KEPT, "frozen_head": 32}.get(kind, 0)
    assert (header.kind, header.target_temperature, header.kept, header.vocab_size) == (kind, tempered, kept, 384)
    assert header.seed == (0 if kind == "sampled" else None)
    assert (header.tokenizer_hash, header.template_hash) == (tokenizer_hash(tokenizer), template_hash(tokenizer))
    assert (header.teacher, header.dtype, header.engine.split()[0]) == (tiny_teacher.name, "float32", "transformers")
    for row, source in zip(said, rows, strict=True):
        first = 0 if prompt_targets else source.prompt_length - 1
        ids = source.input_ids_T
        assert row.input_ids_T is ids and len(row.targets) == len(ids) - 1 - first
        logits_SV = logits_of(ids)[first:-1] / tempered
        CHECKS[kind](row.targets, logits_SV, ids[first + 1 :], head_VD)


def check_sampled(targets, logits_SV, next_S, head_VD):
    """Some u puts DRAWS points (u + j) / DRAWS into the very intervals of the tokens that were drawn."""
    p_SV = np.exp(log_softmax(logits_SV))
    np.testing.assert_allclose(targets.entropy_S, -(p_SV * np.log(p_SV)).sum(axis=1), atol=1e-4)
    ends, starts_of_draws = np.cumsum(p_SV, axis=1), []
    for s, stop in enumerate(targets.ends_S):
        one = slice(targets.ends_S[s - 1] if s else 0, stop)
        drawn_D = np.repeat(targets.token_ids_E[one], targets.counts_E[one])
        assert len(drawn_D) == DRAWS
        high = (ends[s, drawn_D] * DRAWS - np.arange(DRAWS)).min()
        low = ((ends[s, drawn_D] - p_SV[s, drawn_D]) * DRAWS - np.arange(DRAWS)).max()
        assert low <= high + 1e-4 and low < 1 and high > 0
        starts_of_draws.append((low + high) / 2)
    # not one number for all positions
    assert len(next_S) < 4 or np.ptp(starts_of_draws) > 0.1


def check_top_k(targets, logits_SV, next_S, head_VD):
    logprobs_SV = log_softmax(logits_SV)
    chosen_SK = np.take_along_axis(logprobs_SV, targets.token_ids_SK.astype(int), axis=1)
    np.testing.assert_allclose(targets.logprobs_SK, chosen_SK, atol=1e-4)
    np.testing.assert_allclose(targets.next_S, logprobs_SV[np.arange(len(next_S)), next_S], atol=1e-4)
    np.testing.assert_allclose(targets.log_normaliser_S, np.log(np.exp(logits_SV).sum(axis=1)), atol=1e-4)
    np.testing.assert_allclose(np.exp(targets.tail_S) + np.exp(targets.logprobs_SK).sum(axis=1), 1, atol=1e-5)
    for s, ids in enumerate(targets.token_ids_SK):
        must = {int(next_S[s]), 0}  # the end of an answer is the tiny tokenizer's token 0
        likeliest = [int(i) for i in np.argsort(-logprobs_SV[s]) if int(i) not in must][: KEPT - len(must)]
        assert set(ids.tolist()) == must | set(likeliest) and len(set(ids.tolist())) == KEPT
        assert (np.diff(targets.logprobs_SK[s]) <= 0).all()


def check_dense(targets, logits_SV, next_S, head_VD):
    np.testing.assert_allclose(targets.logprobs_SV, log_softmax(logits_SV), atol=1e-4)


def check_next(targets, logits_SV, next_S, head_VD):
    np.testing.assert_allclose(targets.logprobs_S, log_softmax(logits_SV)[np.arange(len(next_S)), next_S], atol=1e-4)


def check_frozen_head(targets, logits_SV, next_S, head_VD):
    p_SV = np.exp(log_softmax(logits_SV))
    np.testing.assert_allclose(targets.vectors_SD, p_SV @ head_VD, atol=1e-5)
    np.testing.assert_allclose(targets.entropy_S, -(p_SV * np.log(p_SV)).sum(axis=1), atol=1e-4)


CHECKS = {
    "sampled": check_sampled,
    "top_k": check_top_k,
    "dense": check_dense,
    "next": check_next,
    "frozen_head": check_frozen_head,
}


def test_an_answer_may_end_in_several_ways(tiny_teacher, logits_of, tokenizer, tmp_path):
    """Gemma's chat models stop at <end_of_turn> and at <eos>: that the text is over is as likely as both together."""
    two = another(tiny_teacher, tmp_path / "two")
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    model.generation_config.eos_token_id = [0, 77]
    model.save_pretrained(two)
    whole = rows_of(tokenizer)
    cut = [replace(row, source=CUT, input_ids_T=row.input_ids_T[:-1]) for row in whole]
    for prompt_targets in (False, True):
        with engine_of(two, tmp_path / "s", wanted("next", prompt_targets=prompt_targets)) as engine:
            said = engine.with_targets([*whole, *cut])
        for row in said:
            ids = row.input_ids_T
            logprobs_SV = log_softmax(logits_of(ids)[:-1])
            expected_S = logprobs_SV[np.arange(len(ids) - 1), ids[1:]]
            if row.source != CUT:
                expected_S[-1] = np.logaddexp(logprobs_SV[-1, 0], logprobs_SV[-1, 77])
            np.testing.assert_allclose(row.targets.logprobs_S, expected_S[-len(row.targets) :], atol=1e-4)
    with engine_of(two, tmp_path / "k", wanted("top_k")) as engine:  # where all tokens are compared, each is itself
        said = engine.with_targets(whole)
    for row in said:
        ids = row.input_ids_T
        check_top_k(row.targets, logits_of(ids)[row.prompt_length - 1 : -1], ids[row.prompt_length :], None)


@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_the_size_of_a_batch_changes_no_row(kind, tiny_teacher, tmp_path):
    """Answers are drawn at temperature 1, all 16 rows have a number and mates of their own."""
    examples = [replace(e, response=None) for e in EXAMPLES for _ in range(3)] + [EXAMPLES[0]]
    want = wanted(kind, prompt_targets=True, seed=5)
    options = {"temperature": 1.0, "keep_answers": True}
    stores = [asked(tiny_teacher, tmp_path / str(b), want, examples, batch_size=b, **options) for b in (1, 3, 8)]
    alike = positions = 0
    for number in range(len(examples)):
        one, *others = [store[number] for store in stores]
        assert one.source == ("data" if number == 15 else one.source) and len(one.targets) == len(one.input_ids_T) - 1
        for other in others:
            assert (other.text, other.source, other.prompt_length) == (one.text, one.source, one.prompt_length)
            assert np.array_equal(other.input_ids_T, one.input_ids_T)
            if kind == "top_k":
                np.testing.assert_allclose(other.targets.next_S, one.targets.next_S, atol=1e-5)
                assert np.abs(other.targets.logprobs_SK - one.targets.logprobs_SK).max() < logprob_bound(12)
            positions += len(one.targets)
            alike += sum(_same(one.targets, other.targets, s) for s in range(len(one.targets)))
    # a point or a rank may sit on the very edge between two tokens
    assert alike >= 0.99 * positions
    assert len({stores[0][n].text for n in range(15)}) > 10, "drawn for each row anew"


def _same(one, other, s):
    one, other = one.part(s, s + 1), other.part(s, s + 1)
    if hasattr(one, "token_ids_SK"):
        return set(one.token_ids_SK[0]) == set(other.token_ids_SK[0])
    return one.token_ids_E.tolist() == other.token_ids_E.tolist() and one.counts_E.tolist() == other.counts_E.tolist()


def test_draws_follow_content_position_and_seed(tiny_teacher, tokenizer, tmp_path):
    row = rows_of(tokenizer)[1]
    with engine_of(tiny_teacher, tmp_path, wanted("sampled")) as engine:
        alone = engine.with_targets([row])[0].targets
        mates = [replace(r, number=r.number + 100) for r in (*rows_of(tokenizer)[::-1], row)]
        again = engine.with_targets(mates)[-1].targets
    with engine_of(tiny_teacher, tmp_path, wanted("sampled", prompt_targets=True)) as engine:
        whole = engine.with_targets([row])[0].targets
    with engine_of(tiny_teacher, tmp_path, wanted("sampled", seed=1)) as engine:
        other_seed = engine.with_targets([row])[0].targets
    S = range(len(alone))
    assert all(_same(alone, again, s) for s in S)
    assert all(_same(alone, whole.part(row.prompt_length - 1, len(whole)), s) for s in S)
    assert not all(_same(alone, other_seed, s) for s in S)


def test_greedy_answers_are_the_models_own(tiny_teacher, logits_of, tokenizer, tmp_path):
    examples = [Example(f"How much is {n} + 1?" + " Quickly!" * (n % 4)) for n in range(8)]
    store = asked(tiny_teacher, tmp_path, wanted(None), examples, batch_size=8, max_new_tokens=9)
    assert store.header.kind == "tokens" and store.header.samples == 1
    for n, example in enumerate(examples):
        ids = encode_prompt(tokenizer, example.prompt)
        prompt_length = len(ids)
        while len(ids) < prompt_length + 9 and (token := int(logits_of(ids)[-1].argmax())) != tokenizer.eos_token_id:
            ids.append(token)
        cut = len(ids) == prompt_length + 9
        assert store[n].input_ids_T.tolist() == (ids if cut else [*ids, tokenizer.eos_token_id])
        assert store[n].source == (CUT if cut else "teacher") and store[n].prompt_length == prompt_length
        assert store[n].text == tokenizer.decode(ids[prompt_length:], skip_special_tokens=True)
    assert any("were cut" in note for note in notes_of(store))


def test_sampled_answers_have_the_tempered_distribution(tiny_teacher, logits_of, tokenizer, tmp_path):
    """2,000 first tokens; the likeliest ten's frequencies within four standard errors."""
    options = {"samples": 1000, "temperature": 2.0, "max_new_tokens": 1}
    store = asked(tiny_teacher, tmp_path, wanted(None), [Example("How much is 3 + 4?")] * 2, **options)
    prompt = encode_prompt(tokenizer, "How much is 3 + 4?")
    p_V = np.exp(log_softmax(logits_of(prompt)[-1] / 2.0))
    firsts = [store[n].input_ids_T[len(prompt)] for n in range(2000) if store[n].source == CUT]
    counts_V = np.bincount(firsts, minlength=len(p_V))
    for token in np.argsort(-p_V)[:10]:
        if token != tokenizer.eos_token_id:
            assert abs(counts_V[token] / 2000 - p_V[token]) < 4 * np.sqrt(p_V[token] / 2000)
    assert firsts[:500] != firsts[-500:]


def test_what_must_be_kept_is(tiny_teacher, tokenizer, tmp_path):
    store = asked(tiny_teacher, tmp_path, wanted(), responses="data", always_keep=["<|user|>", "<|end|>"], top_k=3)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|user|>")]
    assert store.header.always_keep == tuple(ids) and store.header.kept == 3
    for n in range(len(store)):
        row = store[n]
        for s, kept in enumerate(row.targets.token_ids_SK):
            assert {*ids, int(row.input_ids_T[row.prompt_length + s])} <= set(kept.tolist())
            assert len(set(kept.tolist())) == 3


def test_a_top_k_without_room_for_what_must_be_kept_is_refused(tiny_teacher, tmp_path):
    with pytest.raises(RecipeError, match=r"top_k=2 has no room.*needs 3"):
        asked(tiny_teacher, tmp_path, wanted(), always_keep=["<|user|>"], top_k=2)


@pytest.mark.parametrize("word", ["no such token", "", "<|user|><|end|>"])
def test_a_word_that_is_not_one_token_is_refused(word, tiny_teacher, tmp_path):
    with pytest.raises(RecipeError, match=r"always_keep.*no single token") as refused:
        asked(tiny_teacher, tmp_path, wanted(), always_keep=[word])
    assert repr(word) in str(refused.value) and not list(tmp_path.glob("*.bin"))


def test_a_token_that_also_stands_for_the_unknown_can_be_kept(tiny_teacher):
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    tokenizer.unk_token = "<|end|>"
    teacher = Hf(kind="hf", model=str(tiny_teacher), always_keep=["<|end|>"])
    assert keep_ids(teacher, tokenizer) == (0,)


def test_a_vocabulary_smaller_than_top_k_is_kept_whole(tiny_teacher, tmp_path):
    store = asked(tiny_teacher, tmp_path, wanted(), EXAMPLES[:1], responses="data", top_k=1000)
    targets = store[0].targets
    assert store.header.kept == 384 and np.isneginf(targets.tail_S).all()
    np.testing.assert_allclose(np.exp(targets.logprobs_SK.astype(float)).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "name", "most"),
    [
        ({"quantization": "int8"}, "int8 (float32)", 0.05),
        ({"quantization": "nf4"}, "nf4 (float32)", 0.5),
        ({"dtype": "bfloat16"}, "bfloat16", 0.05),
        ({"device_map": "auto"}, "float32", 1e-8),
        ({"quantization": "nf4", "device_map": "auto", "dtype": "bfloat16"}, "nf4 (bfloat16)", 0.5),
    ],
)
def test_a_teacher_that_is_loaded_otherwise_says_nearly_the_same(
    options, name, most, tiny_teacher, logits_of, tmp_path
):
    store = asked(tiny_teacher, tmp_path, wanted("dense"), responses="data", **options)
    assert store.header.dtype == name
    kl = []
    for n in range(len(store)):
        row = store[n]
        truth_SV = log_softmax(logits_of(row.input_ids_T)[row.prompt_length - 1 : -1])
        kl += (np.exp(truth_SV) * (truth_SV - log_softmax(row.targets.logprobs_SV.astype(float)))).sum(axis=1).tolist()
    # float16 keeps 11 bits of a log-probability: that alone is about 1e-7 nats
    assert (1e-6 if most > 1e-6 else 0) < np.mean(kl) < max(most, 2e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_teacher_that_does_not_fit_waits_elsewhere_and_says_the_same(
    tied, tiny_teacher, tmp_path, monkeypatch, capsys
):
    teacher = another(tiny_teacher, tmp_path / "teacher", num_hidden_layers=3, tie_word_embeddings=tied)
    here = asked(teacher, tmp_path / "here", wanted("dense"))
    assert "wait" not in capsys.readouterr().err
    size = sum(p.numel() * 4 for p in AutoModelForCausalLM.from_pretrained(teacher).parameters())
    # a machine whose memory holds part of it: the rest, an untied head among it, stays on the disk until it is used
    monkeypatch.setattr("transformers.integrations.accelerate.accelerate_max_memory", lambda _=None: {"cpu": size // 2})
    away = asked(teacher, tmp_path / "away", wanted("dense"), device_map="auto")
    with engine_of(teacher, tmp_path / "again", wanted("dense"), device_map="auto") as engine:
        assert (engine.model.model.get_output_embeddings().weight.device.type == "meta") is not tied
    assert "wait in the machine's memory or on its disk" in capsys.readouterr().err
    for n in range(len(EXAMPLES)):
        assert here[n].text == away[n].text and list(here[n].input_ids_T) == list(away[n].input_ids_T)
        if here[n].targets is not None:
            np.testing.assert_array_equal(here[n].targets.logprobs_SV, away[n].targets.logprobs_SV)


def test_quantised_weights_that_do_not_fit_are_refused_in_our_words(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.accelerate.accelerate_max_memory", lambda _=None: {"cpu": 60_000})
    with pytest.raises(RecipeError, match=r"do not fit on the GPUs.*\n.*device_map=auto"):
        asked(tiny_teacher, tmp_path, wanted(), quantization="nf4", device_map="auto")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/models/llama", "llama"),
        ("/home/outputs/service_teacher/2026-11-22_03-10-05/packages/bf16", "service_teacher/bf16"),
    ],
)
def test_packages_of_two_runs_have_two_names(folder, name):
    assert name_of(Path(folder)) == name
