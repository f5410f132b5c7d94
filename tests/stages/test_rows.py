"""Which rows a student learns from, in its own tokens, and what is said of those that it does not."""

import pytest

from distill._shards import CUT
from distill._store_writer import StoreWriter
from distill.encoding import train_tokenizer
from distill.errors import DataError
from distill.example import Example
from distill.responses import Header, Row, TeacherResponses
from distill.stages._rows import Said, own_rows, token_rows

TOKENIZER = train_tokenizer(["What is it?", "It is 4."], 300)
LONG = "x" * 100  # a token each, as no text of the tokenizer has one


def answers(made):
    return [TOKENIZER.decode(row.read()[0][row.prompt_length :].tolist()) for row in made.rows]


def test_own_rows_are_those_with_an_answer():
    rows = [Example("What is it?", "4."), Example("What?", None), Example("What is?", "It is 4.")]
    made = own_rows(rows, TOKENIZER, max_length=64)
    assert [row.number for row in made.rows] == [0, 2]
    assert answers(made) == ["4.<|end|>", "It is 4.<|end|>"]
    assert all(row.read()[1] is None for row in made.rows)
    assert made.lengths == [len(row.read()[0]) for row in made.rows]
    assert made.notes(64) == []


def test_an_answer_that_was_cut_neither_ends_nor_keeps_half_a_character(tmp_path):
    said = [Row(0, "It is \N{REPLACEMENT CHARACTER}", CUT), Row(1, "It is", "teacher"), Row(2, "", "none")]
    header = Header(teacher="t", engine="e", dtype="none", kind="text", num_rows=3)
    writer = StoreWriter(tmp_path, header, [range(3)])
    for batch in writer.missing():
        writer.write([said[number] for number in batch])
    writer.finish()
    examples = [Example("What is it?")] * 3
    made = token_rows([Said(examples, TeacherResponses(tmp_path))], TOKENIZER, max_length=64)
    assert [row.number for row in made.rows] == [0, 1]  # a prompt without an answer is no row
    assert answers(made) == ["It is ", "It is<|end|>"]


def test_what_is_cut_and_what_is_left_out_is_said():
    rows = [Example(LONG, "4."), Example("What?", LONG), Example("What?", "4.")]
    made = own_rows(rows, TOKENIZER, max_length=24)
    assert made.lengths[0] == 24 and len(made.rows) == 2
    cut, left_out = made.notes(24)
    assert cut == "1 response was cut at 24 tokens (training.max_length)."
    assert left_out.startswith("1 rows were left out: their prompt alone reaches 24 tokens")
    assert own_rows(rows[:2], TOKENIZER, max_length=200).notes(200) == []


@pytest.mark.parametrize(
    ("rows", "words", "advice"),
    [
        ([Example(LONG, "4."), Example("What?", None)], "of 2, 1 have prompts that leave no room", True),
        ([Example("What?", None)], "of 1, 0 have prompts that leave no room", False),
    ],
)
def test_nothing_to_learn_from_is_refused(rows, words, advice):
    with pytest.raises(DataError) as refused:
        own_rows(rows, TOKENIZER, max_length=16)
    message = str(refused.value)
    assert words in message and "the other 1 have no answer" in message
    assert ("Raise training.max_length" in message) == advice
