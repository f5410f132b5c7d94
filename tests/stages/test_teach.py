"""Which answers become rows: samples, filters, own answers, what cannot be asked, and what a crash repeats."""

import shutil
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from distill._shards import CUT, Row, scan
from distill.encoding import encode_prompt, encode_response, train_tokenizer
from distill.errors import StageFailed
from distill.example import Example
from distill.responses import Header, TeacherResponses
from distill.stages import teach
from distill.stages._rows import Said, token_rows
from distill.teacher.hf import Hf
from tests.stages.asking import EXAMPLES, another, asked, engine_of, just, notes_of, wanted

LONG = Example("word " * 400, "#### 1")


@dataclass
class Scripted:
    """An engine that gives the answers that it was given, and remembers what it was asked."""

    tokenizer: object
    script: dict[int, tuple[str, str]]
    """Row number → text and source; any other row is "#### 7"."""
    name: str = "scripted"
    context: int = 192
    samples: int = 1
    asked: list[list[int]] = field(default_factory=list)

    def header(self, num_rows):
        facts = {"teacher": self.name, "engine": "e", "dtype": "d", "kind": "tokens", "vocab_size": 384}
        return Header(**facts, samples=self.samples, num_rows=num_rows)

    def answer(self, questions):
        self.asked.append([question.number for question in questions])
        rows = []
        for question in questions:
            text, source = self.script.get(question.number, ("#### 7", "teacher"))
            ids = [*question.prompt_ids, *encode_response(self.tokenizer, text)]
            ids = np.array(ids if source == "teacher" else ids[:-1], np.int32)
            rows.append(Row(question.number, text, source, ids, len(question.prompt_ids)))
        return rows

    def with_targets(self, rows):
        raise AssertionError("without a layout there is nothing to add")


@pytest.fixture
def scripted(tiny_teacher, tmp_path):
    """(answers, examples, options) → the store, and the engine that was asked."""

    def ask(script, examples, **options):
        samples = options.get("samples", 1)
        teacher = Hf(kind="hf", model="m", temperature=1.0 if samples > 1 else 0.0, **options)
        engine = Scripted(AutoTokenizer.from_pretrained(tiny_teacher), script, samples=samples)
        teach.ask(teacher, just(engine), examples, tmp_path)
        return TeacherResponses(tmp_path), engine

    return ask


def sources(store):
    return [store[n].source for n in range(len(store))]


def test_all_samples_of_a_prompt_are_one_batch_and_differ(tiny_teacher, tmp_path):
    examples = [Example(f"How much is {n} + {n}?" + " Please!" * (4 - n)) for n in range(5)]
    want, batches = wanted("top_k"), []
    with engine_of(tiny_teacher, tmp_path, want, samples=3, temperature=1.5, batch_size=7) as engine:
        answer = engine.answer
        engine.answer = lambda questions: batches.append([q.number for q in questions]) or answer(questions)
        teach.ask(engine.teacher, just(engine), examples, tmp_path)
    store = TeacherResponses(tmp_path)
    assert (len(store), store.header.samples, store.header.num_rows) == (15, 3, 15)
    # two prompts of three samples are at most seven rows; the shortest prompts are the last ones
    assert batches == [[12, 13, 14, 9, 10, 11], [6, 7, 8, 3, 4, 5], [0, 1, 2]]
    for prompt, example in enumerate(examples):
        ids = encode_prompt(AutoTokenizer.from_pretrained(tiny_teacher), example.prompt)
        rows = [store[3 * prompt + sample] for sample in range(3)]
        assert all(row.input_ids_T[: row.prompt_length].tolist() == ids for row in rows)
        assert len({row.text for row in rows}) == 3


KNOWN = [Example("a?", "3 + 4 = 7. #### 7"), Example("b?", "no figure here"), Example("c?")]
SAID = {
    0: ("so #### 7.", "teacher"),
    1: ("#### 8", "teacher"),
    2: ("seven", "teacher"),
    3: ("no figure here ", "teacher"),
    4: ("#### 7", CUT),
    5: ("no figure here", "teacher"),
    6: ("#### 7", "teacher"),
    7: ("", "teacher"),
    8: (" #### 7", "teacher"),
}


@pytest.mark.parametrize(
    ("filters", "left_out"),
    [
        ([], {}),
        (["cut"], {4: "cut"}),
        (["final_answer"], dict.fromkeys((2, 3, 5), "no final answer")),
        (["known_answer"], dict.fromkeys((1, 2, 4), "other answer")),
        (["duplicate"], dict.fromkeys((5, 8), "duplicate")),
        (["final_answer", "duplicate"], {**dict.fromkeys((2, 3, 5), "no final answer"), 8: "duplicate"}),
    ],
)
def test_filters_leave_out_what_they_say_and_nothing_else(filters, left_out, scripted):
    """Row 7 is empty, which no recipe wants; rows 3 and 5 differ by a blank, 6 and 8 too."""
    store, _ = scripted(SAID, KNOWN, samples=3, filters=filters)
    left_out = {7: "empty", **left_out}
    for n in range(9):
        assert (store[n].text, store[n].source) == (SAID[n][0], left_out.get(n, SAID[n][1])), n
        assert (store.lengths(n) is None) == (n in left_out)
    said = " ".join(notes_of(store))
    for why, count in Counter(left_out.values()).items():
        words = {"cut": "were cut before their end: left out", "no final answer": "no final answer"}
        words |= {"other answer": "another answer than the data's", "duplicate": "another answer to the same prompt"}
        assert f"{count} answers of scripted" in said and words.get(why, "are empty: left out") in said
    assert ("not end." in said) == (4 not in left_out)


def test_a_duplicate_of_an_answer_that_was_left_out_is_kept(scripted):
    said = {0: ("#### 7 ", CUT), 1: ("#### 7", "teacher")}
    store, _ = scripted(said, [Example("a?")], samples=2, filters=["cut", "duplicate"])
    assert sources(store) == ["cut", "teacher"]


def test_own_answers_are_kept_once_and_the_rest_is_asked(scripted):
    examples = [EXAMPLES[0], Example("and?"), EXAMPLES[3]]
    store, engine = scripted({}, examples, samples=2, keep_answers=True)
    assert sources(store) == ["data", "own answer", "teacher", "teacher", "data", "own answer"]
    assert engine.asked == [[2, 3]]
    for number, example in ((0, examples[0]), (4, examples[2])):
        ids = encode_prompt(engine.tokenizer, example.prompt) + encode_response(engine.tokenizer, example.response)
        assert store[number].input_ids_T.tolist() == ids and store[number].text == example.response
    assert notes_of(store) == []


def test_without_keep_answers_everybody_is_asked(scripted):
    store, engine = scripted({}, EXAMPLES)
    assert (
        sorted(number for batch in engine.asked for number in batch) == list(range(5))
        and sources(store) == ["teacher"] * 5
    )


def test_with_the_datas_answers_nobody_is_asked(scripted):
    examples = [EXAMPLES[1], Example("no answer"), LONG, Example("so long", "word " * 400)]
    store, engine = scripted({}, examples, responses="data")
    assert sources(store) == ["data", "none", "too long", CUT] and engine.asked == []
    assert len(store[3].input_ids_T) == 192, "an answer beyond the context is cut there, and does not end"
    assert store[3].text != "word " * 400 and ("word " * 400).startswith(store[3].text)
    assert notes_of(store) == [
        "1 prompts have no answer of scripted: left out.",
        "1 prompts do not fit the context of scripted: not asked, and left out.",
        "1 answer of scripted was cut (teacher.max_new_tokens, training.max_length, context); it does not end.",
    ]


def test_a_prompt_that_is_too_long_is_one_prompt_however_many_samples(scripted):
    store, _ = scripted({}, [LONG, Example("a?")], samples=3)
    assert sources(store) == ["too long"] * 3 + ["teacher"] * 3
    assert notes_of(store) == ["1 prompts do not fit the context of scripted: not asked, and left out."]


def test_without_a_teacher_rows_that_have_no_answer_are_counted_too(tmp_path):
    examples = [Example("one", "1"), Example("two"), Example("three", "3"), Example("four")]
    teach.copy_texts(examples, tmp_path)
    store = TeacherResponses(tmp_path)
    assert [store.lengths(number) is not None for number in range(4)] == [True, False, True, False]
    assert notes_of(store) == ["2 prompts have no answer of their own: left out."]


def test_a_batch_of_nothing_but_prompts_too_long_has_no_targets(tiny_teacher, tmp_path):
    store = asked(tiny_teacher, tmp_path, wanted("sampled"), [LONG, LONG, EXAMPLES[0]], batch_size=2)
    assert sources(store)[:2] == ["too long"] * 2 and store.lengths(0) is None
    assert len(store[0].targets or ()) == 0 and len(store[2].targets) > 0


def test_an_answer_fills_the_context_and_no_more(tiny_teacher, tmp_path):
    """190 tokens of prompt leave room for one of an answer and its end; 191 do not."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    prompts = ["!" * n for n in range(100, 200)]
    by_length = {len(encode_prompt(tokenizer, p)): p for p in prompts}
    assert {190, 191} <= set(by_length), sorted(by_length)
    examples = [Example(by_length[n]) for n in (190, 191)]
    store = asked(tiny_teacher, tmp_path, wanted("next"), examples, max_new_tokens=100)
    assert 191 <= len(store[0].input_ids_T) <= 192 and sources(store)[1] == "too long"
    assert len(store[0].targets) == len(store[0].input_ids_T) - 190


def test_a_long_prompt_takes_no_room_from_its_mates(tiny_teacher, tmp_path):
    examples = [Example("Say much!"), Example("!" * 150)]
    options = {"max_new_tokens": 100, "temperature": 1.0}
    alone = asked(tiny_teacher, tmp_path / "1", wanted(None), examples, batch_size=1, **options)
    together = asked(tiny_teacher, tmp_path / "2", wanted(None), examples, batch_size=2, **options)
    assert (together[0].text, together[0].source) == (alone[0].text, alone[0].source)


def test_no_rows_make_an_empty_store(scripted):
    store, engine = scripted({}, [])
    assert len(store) == 0 and engine.asked == []


@pytest.mark.parametrize("kind", ["sampled", "frozen_head", None])
def test_a_crash_repeats_no_batch_and_ends_with_the_same_bytes(kind, tiny_teacher, tmp_path):
    examples = [Example(f"How much is {n} * {n}?" + " Tell!" * (n % 3)) for n in range(9)] + [LONG]
    want, options = wanted(kind, seed=4), {"temperature": 1.0, "batch_size": 2}
    options |= {"head": tiny_teacher} if kind == "frozen_head" else {}
    whole = asked(tiny_teacher, tmp_path / "whole", want, examples, **options)
    folder, batches = tmp_path / "cut", []
    for _ in range(2):
        with engine_of(tiny_teacher, folder, want, **options) as engine:
            answer = engine.answer

            def dies(questions, answer=answer):
                batches.append([q.number for q in questions])
                if len(batches) == 3:
                    raise KeyboardInterrupt
                return answer(questions)

            engine.answer = dies
            try:
                measured = teach.ask(engine.teacher, just(engine), examples, folder)
            except KeyboardInterrupt:
                assert not (folder / "summary.json").exists() and not (folder / "notes.json").exists()
                (shard,) = folder.glob("*.bin")
                with shard.open("ab") as file:
                    file.write(b"half a record")
    assert measured == {"resumed_after_rows": 4}
    assert batches[2] == batches[3] and Counter(sum(batches[3:], batches[0] + batches[1])) == Counter(range(9))
    for file in whole.path.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("kind", ["sampled", "dense", "next"])
def test_answers_that_were_given_before_are_only_scored(kind, tiny_teacher, tmp_path):
    """The store is what it would have been, byte for byte, and nobody is asked."""
    examples = [Example(f"How much is {n} - {n}?" + " Well!" * (n % 3)) for n in range(7)] + [LONG]
    options = {"temperature": 1.0, "samples": 2, "filters": ["duplicate", "cut"], "keep_answers": True}
    earlier = asked(tiny_teacher, tmp_path / "earlier", wanted("top_k"), examples, **options)
    whole = asked(tiny_teacher, tmp_path / "whole", wanted(kind), examples, **options)
    with engine_of(tiny_teacher, tmp_path / "scored", wanted(kind), **options) as engine:
        engine.answer = None  # would fail
        teach.ask(engine.teacher, just(engine), examples, tmp_path / "scored", earlier)
    for file in whole.path.iterdir():
        assert (tmp_path / "scored" / file.name).read_bytes() == file.read_bytes(), file.name


def test_answers_in_a_damaged_store_are_given_again(tiny_teacher, tmp_path):
    examples, options = [Example(f"How much is {n}?") for n in range(9)], {"batch_size": 2}
    whole = asked(tiny_teacher, tmp_path / "whole", wanted("top_k"), examples, **options)
    shutil.copytree(whole.path, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "shard-00000.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (tmp_path / "again").mkdir()
    with engine_of(tiny_teacher, tmp_path / "again", wanted("top_k"), **options) as engine:
        teach.ask(engine.teacher, just(engine), examples, tmp_path / "again", TeacherResponses(tmp_path / "damaged"))
    assert (tmp_path / "again" / "shard-00000.bin").read_bytes() == (whole.path / "shard-00000.bin").read_bytes()


@pytest.fixture
def half_mad(tiny_teacher, tmp_path):
    """A teacher whose embedding of one token, a part of an owl, is NaN: only rows with an owl are lost."""
    folder = another(tiny_teacher, tmp_path / "half_mad", tie_word_embeddings=False)
    owl = AutoTokenizer.from_pretrained(tiny_teacher)("🦉")["input_ids"][0]
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][owl] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["sampled", "top_k", "dense", "next", "frozen_head"])
def test_weights_that_are_no_numbers_are_refused_and_their_batch_is_not_stored(kind, half_mad, tmp_path):
    examples = [Example("a?", "b"), Example("Which bird?", "an owl: 🦉")]
    options = {"responses": "data", "batch_size": 1, "head": half_mad if kind == "frozen_head" else None}
    with pytest.raises(StageFailed, match=r"not finite.*teacher\.dtype=float32.*nothing of this batch"):
        asked(half_mad, tmp_path / "store", wanted(kind), examples, **options)
    assert [found.number for found in scan(tmp_path / "store" / "shard-00000.bin")] == [0]
    assert not (tmp_path / "store" / "summary.json").exists()


def test_weights_that_are_no_numbers_are_refused_where_only_text_is_wanted(half_mad, tmp_path):
    with pytest.raises(StageFailed, match="not finite"):
        asked(half_mad, tmp_path / "store", wanted(None), [Example("Which bird is 🦉?")])


def test_a_cut_answer_ends_in_no_tokenizer(scripted):
    store, _ = scripted({0: ("3 + 4 =", CUT)}, [Example("a?"), Example("b?")])
    other = train_tokenizer(["3 + 4 = 7 #### 7 a b ?"] * 9, 300)
    cut, whole = (
        row.read()[0] for row in token_rows([Said([Example("a?"), Example("b?")], store)], other, max_length=99).rows
    )
    assert whole[-1] == other.eos_token_id and cut[-1] != other.eos_token_id


def test_rows_with_answers_of_their_own_are_cut_where_nothing_more_is_learnt(tiny_teacher, tmp_path):
    examples = [Example("How much?", "12 " * 40), Example("Why?", "so"), Example("long " * 30, "no")]
    with engine_of(tiny_teacher, tmp_path, wanted(), responses="data") as engine:
        teach.ask(engine.teacher, just(engine), examples, tmp_path, max_length=40)
    store = TeacherResponses(tmp_path)
    assert [store[n].source for n in range(3)] == [CUT, "data", "too long"]
    assert len(store[0].input_ids_T) == 40 and len(store[1].input_ids_T) < 40
    own = teach.settings(engine.teacher, replace(wanted(), max_length=20))
    assert own != teach.settings(engine.teacher, replace(wanted(), max_length=30))
    asked = Hf(kind="hf", model=str(tiny_teacher))
    assert teach.settings(asked, wanted()) == teach.settings(asked, replace(wanted(), max_length=20))


def test_a_batch_of_own_answers_holds_rows_of_like_length(tiny_teacher, tmp_path):
    """Their prompts are alike: the answers are what would be padded."""
    lengths = [3, 90, 12, 60, 5, 75, 30, 9, 45]
    examples = [Example("", "x" * length) for length in lengths]
    with engine_of(tiny_teacher, tmp_path, wanted(), responses="data", batch_size=3) as engine:
        batches = teach._Rows(engine.teacher, engine, examples, None, None).batches()
    assert [[lengths[n] for n in batch] for batch in batches] == [[3, 5, 9], [12, 30, 45], [60, 75, 90]]
