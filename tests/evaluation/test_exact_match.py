"""evaluation=exact_match: which answers are right."""

import unicodedata

import pytest

from distill.evaluation.exact_match import ExactMatch, final_answer


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("card_arrival", " card_arrival\n", True),
        ("Card_arrival", "card_arrival", False),
        ("card arrival", "card_arrival", False),
        # composed and apart: the same text, and all that a tokenizer with NFC can say is the first
        ("caf\u00e9", "cafe\u0301", True),
        ("한글", unicodedata.normalize("NFD", "한글"), True),
        ("cafe", "caf\u00e9", False),
        # what only looks alike stays another text
        ("ﬁ", "fi", False),
    ],
)
def test_the_whole_answer(answer, reference, right):
    assert ExactMatch(kind="exact_match").correct(answer, reference) is right


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1+1=2\n#### 2", "2"),
        ("#### $1,234.", "1234"),
        ("#### 3\nno, #### 4", "4"),
        ("the answer is 4", None),
    ],
)
def test_the_final_answer(text, found):
    assert final_answer(text) == found
    evaluation = ExactMatch(kind="exact_match", compare="final_answer")
    assert evaluation.correct(text, f"so\n#### {found}") is (found is not None)
