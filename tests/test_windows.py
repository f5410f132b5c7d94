"""Long plain texts become rows that follow each other: every character once, no row too long, one end for a text."""

import json
import math

import pytest

from distill.data.local import Local
from distill.encoding import decode_response, encode_prompt, encode_response, load_tokenizer, train_tokenizer
from distill.example import Example, fingerprint_of
from distill.responses import TeacherResponses
from distill.stages import teach
from distill.stages._rows import Said, own_rows, token_rows
from distill.windows import in_windows, windows_of
from tests.conftest import ROOT
from tests.small_models import gpt2_tokenizer
from tests.stages.asking import engine_of, just, wanted

TEXTS = {
    "letters of several tokens": "ab 👩‍👩‍👧 🧑‍🚀 " * 40,
    "no blanks": "这是一个很长的句子没有空格" * 40,
    "blanks alone": "a   \n\n\n  b\t\t c  " * 50,
    "one word": "supercalifragilistic" * 40,
    "letters that are composed": "e\u0301a\u0308 o\u0302 " * 80,
    "lines of Windows": "one two\r\nthree\r\n\r\nfour " * 50,
}


@pytest.fixture(params=["gpt2", "stories260k", "bundled"])
def tokenizer(request, shared_data):
    if request.param == "gpt2":
        return gpt2_tokenizer(shared_data)
    at = shared_data / "stories260k" if request.param == "stories260k" else "distill/bundled/quickstart_teacher"
    return load_tokenizer(ROOT / at)


def num_tokens(tokenizer, text, ends):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + ends


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("room", [7, 64, 511])
def test_every_character_is_in_one_window_that_fits_and_one_window_ends(tokenizer, kind, room):
    found = list(windows_of(TEXTS[kind], [(tokenizer, room)]))
    assert "".join(text for text, *_ in found) == TEXTS[kind]
    assert [ends for _, ends, _ in found] == [False] * (len(found) - 1) + [True]
    sizes = [num_tokens(tokenizer, text, ends) for text, ends, _ in found]
    assert sizes == [size for *_, size in found] and max(sizes) <= room
    # a letter of a family is of 18 tokens in some vocabularies, of which none is left behind
    assert min(sizes[:-1], default=room) > room - 4


def test_real_text_fills_its_windows(tokenizer, shared_data):
    text = (shared_data / "wikitext2/valid.txt").read_text("utf-8")[:150_000]
    found = list(windows_of(text, [(tokenizer, 255)]))
    assert "".join(text for text, *_ in found) == text
    sizes = [num_tokens(tokenizer, text, ends) for text, ends, _ in found]
    assert max(sizes) <= 255
    # a window that begins inside a word may say it in a token more than the whole text does
    whole = num_tokens(tokenizer, text, True)
    assert math.ceil(whole / 255) <= len(found) <= math.ceil(1.005 * whole / 255)


@pytest.mark.parametrize("tokens", [1, 6, 7, 8, 13, 14, 15])
def test_the_end_counts_too(tokens):
    tokenizer = train_tokenizer([], 300)  # a letter is a token
    found = list(windows_of("x" * tokens, [(tokenizer, 7)]))
    by_hand = {1: [2], 6: [7], 7: [6, 2], 8: [7, 2], 13: [7, 7], 14: [7, 6, 2], 15: [7, 7, 2]}
    assert [size for *_, size in found] == by_hand[tokens]


def test_windows_fit_every_tokenizer_that_reads_them(shared_data):
    sides = [gpt2_tokenizer(shared_data), load_tokenizer(shared_data / "stories260k")]
    text = (shared_data / "wikitext2/valid.txt").read_text("utf-8")[:20_000]
    rows, _ = in_windows([Example("", text)], sides, 128)
    assert "".join(str(row.response) for row in rows) == text
    for tokenizer in sides:
        longest = max(len(encode_prompt(tokenizer, "")) + num_tokens(tokenizer, r.response, r.ends) for r in rows)
        assert longest <= 128


def test_rows_with_prompts_and_their_teachers_stay_and_where_texts_are_cut_is_part_of_their_identity():
    tokenizer = train_tokenizer([], 300)
    asked, text = Example("x" * 50, "y" * 50), Example("", "z" * 20, teacher="a")
    rows, tokens = in_windows([asked, text, Example("", None)], [tokenizer, tokenizer], 12)
    assert rows == [asked, Example("", "z" * 11, "a", ends=False), Example("", "z" * 9, "a"), Example("", None)]
    assert tokens == 12 + 11
    assert fingerprint_of(rows[1:2]) != fingerprint_of([Example("", "z" * 11)])


@pytest.mark.parametrize("kind", ["sampled", None])
def test_each_token_of_a_text_is_learnt_once_from_the_teachers_store(tiny_teacher, tmp_path, kind):
    tokenizer = load_tokenizer(tiny_teacher)
    texts = [f"The {n}th text says {n} times that it is long. " * n for n in (1, 30, 7)]
    rows, tokens = in_windows([Example("", text) for text in texts], [tokenizer], 64)
    with engine_of(tiny_teacher, tmp_path, wanted(kind), responses="data", batch_size=4) as engine:
        teach.ask(engine.teacher, just(engine), rows, tmp_path, max_length=64)
    store = TeacherResponses(tmp_path)
    assert (tmp_path / "notes.json").read_text() == "[]"
    learnt = token_rows([Said(rows, store)], tokenizer, max_length=64)
    assert sum(learnt.lengths) == tokens and max(learnt.lengths) <= 64
    start, end = encode_prompt(tokenizer, "")[0], tokenizer.eos_token_id
    said = ""
    ends = 0
    for row in learnt.rows:
        ids, targets = row.read()
        assert ids[0] == start and (targets is None or len(targets) == row.length - 1)
        ends += ids[-1] == end
        said += decode_response(tokenizer, [n for n in ids[1:].tolist() if n != end])
    assert said == "".join(texts)
    assert ends == len(texts)
    # the data's own text, as baselines and loss=text read it
    assert own_rows(rows, tokenizer, max_length=64).lengths == learnt.lengths


def test_a_tokenizer_that_is_made_of_the_texts_cuts_them_when_it_is_there(tmp_path):
    text = "abcdefghij" * 10
    teach.copy_texts([Example("", text), Example("", "short")], tmp_path)
    tokenizer = train_tokenizer([], 300)
    learnt = token_rows(
        [Said([Example("", text), Example("", "short")], TeacherResponses(tmp_path))], tokenizer, max_length=16
    )
    read = [row.read()[0].tolist() for row in learnt.rows]
    assert [len(ids) for ids in read] == [16] * 6 + [1 + 10 + 1, 1 + 5 + 1]
    assert tokenizer.decode([n for ids in read[:7] for n in ids[1:] if n != tokenizer.eos_token_id]) == text
    assert learnt.notes(16) == ["6 of 8 rows go on with a text that is longer than 16 tokens (training.max_length)."]
    assert encode_response(tokenizer, "j")[-1] == read[6][-1] == tokenizer.eos_token_id != read[5][-1]


@pytest.mark.slow
def test_a_run_learns_all_of_a_long_text_and_says_in_how_many_rows(run_cli, tmp_path, tiny_teacher, tiny_run_arguments):
    texts = [f"The {n}th text says {n} times that it is long. " * n for n in (1, 30, 7, 2, 60, 5, 4, 3, 9, 8, 6)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = [argument for argument in tiny_run_arguments if not argument.startswith("data.")]
    arguments += ["data=local", "data.path=t.jsonl", "data.text_field=text", "teacher.responses=data", "until=train"]
    arguments += ["evaluation=bits_per_byte"]
    ran = run_cli(*arguments, "training.max_length=64", "training.max_steps=null", "baselines=[baseline_text]")
    assert ran.returncode == 0, ran.stderr
    learnt = Local(kind="local", path=str(tmp_path / "t.jsonl"), text_field="text").load().train
    rows, tokens = in_windows(learnt, [load_tokenizer(tiny_teacher)], 64)
    (logbook,) = tmp_path.glob("outputs/quickstart/*/logbook.md")
    assert (
        f"10 texts are {len(rows)} rows of 64 tokens at most (training.max_length), {tokens:,} tokens"
        in logbook.read_text()
    )
    trained = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/store/**/training.json")]
    assert [facts["rows"] for facts in trained] == [len(rows)] * 2
