"""Byte offsets of real tokenizers, against prefixes that they decode themselves and ends written by hand."""

from functools import cache

import numpy as np
import pytest

from distill.alignment import TokenBytes, common_spans
from distill.encoding import encode_response, load_tokenizer, train_tokenizer
from distill.responses import Row
from distill.targets.next_token import NextTokenTargets
from tests.small_models import gpt2_tokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "naïve café — “quoted” …",
    "emoji 🤗 and a family 👩‍👩‍👧‍👦, a flag 🇨🇭, a thumb 👍🏽.",
    "combining: e\u0301 o\u0308 \u0915\u094d\u0937\u093f",
    "世界你好，日本語のテキスト。",
    "  two blanks first,  and  between",
    " one blank first",
    "line\nline\n\n  indented\tand a tab\r\n",
    "\n",
    "😀",
    "e\u0301",
    "x",
]


gpt2 = cache(gpt2_tokenizer)


@cache
def stories(shared_data):
    return load_tokenizer(shared_data / "stories260k")


@cache
def ours(_):
    return train_tokenizer([*TEXTS[:2], "the cat sat on the mat and the dog sat too. " * 20, "世界世界世界"], 340)


def with_normaliser(kind):
    def make(shared_data):
        from tokenizers import normalizers

        tokenizer = ours.__wrapped__(shared_data)  # its own, for it is changed
        tokenizer.backend_tokenizer.normalizer = getattr(normalizers, kind)()
        return tokenizer

    return make


TOKENIZERS = [gpt2, stories, ours]


@pytest.fixture(scope="module", params=TOKENIZERS, ids=lambda make: make.__name__)
def tokenizer(request, shared_data):
    return request.param(shared_data)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_ends_are_those_of_decoded_prefixes(tokenizer, text):
    """Where the tokens so far are whole characters, the tokenizer itself decodes them to the text up to the end."""
    ids = ids_of(tokenizer, text)
    ends = TokenBytes(tokenizer).ends(ids, text, ended=False)
    assert ends[-1] == len(text.encode())
    assert (np.diff(ends) > 0).all()  # each token has bytes of its own
    for count, end in enumerate(ends, start=1):
        prefix = tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)
        if "�" in prefix:
            # byte-level decoders show the incomplete character, byte fallback every byte of the run it is in
            after = end - len(prefix.rstrip("�").encode())
            assert 0 < after < 4 or after == prefix.count("�")
            with pytest.raises(UnicodeDecodeError):
                text.encode()[:end].decode()
        else:
            # SentencePiece's decoder takes a blank away, also one that the text begins with: those are done by hand
            assert text.encode()[:end].decode().lstrip(" ") == prefix.lstrip(" ")


BY_HAND = [
    # four bytes of one character: GPT-2 has the first two as one token, a byte fallback none
    (gpt2, "🤗", [2, 3, 4]),
    (stories, "🤗", [0, 1, 2, 3, 4]),
    # "▁", then the bytes of 世 and 界
    (stories, "世界", [0, 1, 2, 3, 4, 5, 6]),
    # the blank before "He" is the tokenizer's: ▁He ll o
    (stories, "Hello", [2, 4, 5]),
    # here it is the text's: ▁ ▁t w o
    (stories, "  two", [1, 3, 4, 5]),
    (stories, "\n", [0, 1]),
    (gpt2, " a\n\nb", [2, 3, 4, 5]),
    (stories, "", []),
    (gpt2, "", []),
]


@pytest.mark.parametrize(("make", "text", "expected"), BY_HAND)
def test_ends_by_hand(shared_data, make, text, expected):
    tokenizer = make(shared_data)
    ids = ids_of(tokenizer, text)
    table = TokenBytes(tokenizer)
    assert table.ends(ids, text, ended=False).tolist() == expected
    end = [*ids, tokenizer.eos_token_id]
    assert table.ends(end, text, ended=True).tolist() == [*expected, len(text.encode()) + 1]


def test_every_byte_of_gpt2_is_where_its_vocabulary_has_it(shared_data):
    """Its first 256 ids are the bytes: the printable ones in order, then the others in order."""
    table = TokenBytes(gpt2(shared_data))
    in_order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    in_order += sorted(set(range(256)) - set(in_order))
    assert [table.of(number)[0] for number in range(256)] == in_order
    assert all(len(table.of(number)) == 1 for number in range(256))


def test_special_tokens_that_text_spells_and_those_it_leaves_out(shared_data):
    tokenizer = ours(shared_data)
    table, middle = TokenBytes(tokenizer), tokenizer.convert_tokens_to_ids("<|user|>")
    assert table.ends(ids_of(tokenizer, "a<|user|>b"), "a<|user|>b", ended=False).tolist() == [1, 9, 10]
    a, b = ids_of(tokenizer, "a"), ids_of(tokenizer, "b")
    assert table.ends([*a, middle, *b], "ab", ended=False).tolist() == [1, 1, 2]


def test_text_that_was_stripped_of_the_blanks_around(shared_data):
    tokenizer = gpt2(shared_data)
    ids = [*encode_response(tokenizer, " Paris is\n\n \n")]
    ends = TokenBytes(tokenizer).ends(ids, "Paris is", ended=True)
    assert ends.tolist() == [5, 8, *[8] * (len(ids) - 3), 9]
    spans = common_spans(ends, np.array([5, 8, 9]))
    assert spans.teacher_N.tolist() == [0, 1, *[2] * (len(ids) - 2)]  # the blanks go with the end


def test_a_normaliser_that_joins_characters(shared_data):
    """NFC makes one character of letter and mark: é one token, ç and 世 two, whose first ends where they begin."""
    tokenizer = with_normaliser("NFC")(shared_data)
    text = "ab e\u0301c\u0327 x"
    ids = ids_of(tokenizer, text)
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "b", "Ġ", "Ã©", "Ã", "§", "Ġ", "x"]
    ends = TokenBytes(tokenizer).ends(ids, text, ended=False)
    assert ends.tolist() == [1, 2, 3, 6, 6, 9, 10, 11]


def test_lower_case(shared_data):
    tokenizer = with_normaliser("Lowercase")(shared_data)
    text = "The CAT 🤗 sat"
    plain = TokenBytes(tokenizer).ends(ids_of(tokenizer, text.lower()), text.lower(), ended=False)
    ends = TokenBytes(tokenizer).ends(ids_of(tokenizer, text), text, ended=False)
    outside = ~((plain > 8) & (plain < 12))  # parts of the emoji end where it begins
    assert (ends[outside] == plain[outside]).all() and (ends[~outside] == 8).all()


def test_an_answer_cut_inside_a_character(shared_data):
    from distill.stages._aligned_rows import Aligner

    teacher, student = gpt2(shared_data), stories(shared_data)
    ids = ids_of(teacher, "Hello you 🤗")[:-1]
    assert teacher.convert_ids_to_tokens(ids) == ["Hello", "Ġyou", "ĠðŁ", "¤"]
    assert teacher.decode(ids) == "Hello you �"
    # no token ends between the blank and the emoji, and where the text ends no token of it does
    assert TokenBytes(teacher).ends(ids, "Hello you ", ended=False).tolist() == [5, 9, 9, 9]
    targets = NextTokenTargets(np.array([-1, -2, -4, -8], dtype=np.float32))
    row = Row(0, "Hello you �", "teacher, cut", np.array([0, *ids], dtype=np.int32), 1, targets)
    aligned = Aligner(teacher, student).align(row, [1])
    assert aligned.span_logprob_C.tolist() == [-1, -2]
    assert student.decode(aligned.input_ids_T[1:]) == "Hello you "


def test_bytes_that_are_no_character_in_the_middle_are_one_span_with_what_follows(shared_data):
    tokenizer = gpt2(shared_data)
    ids = [*ids_of(tokenizer, "Hi"), *ids_of(tokenizer, "🤗")[1:2], *ids_of(tokenizer, " you all")]
    text = tokenizer.decode(ids)
    assert text == "Hi� you all"
    assert TokenBytes(tokenizer).ends(ids, text, ended=False).tolist() == [2, 5, 9, 13]


@pytest.mark.parametrize("teacher", TOKENIZERS)
@pytest.mark.parametrize("student", [*TOKENIZERS, with_normaliser("NFC")])
def test_spans_tile_both_sides(shared_data, teacher, student):
    sides = [make(shared_data) for make in (teacher, student)]
    tables = [TokenBytes(side) for side in sides]
    for text in [*TEXTS, ""]:
        ends = [
            table.ends(encode_response(side, text), text, ended=True) for side, table in zip(sides, tables, strict=True)
        ]
        spans = common_spans(*ends)
        for span_N, ends_N in zip((spans.teacher_N, spans.student_N), ends, strict=True):
            assert len(span_N) == len(ends_N)
            assert span_N[0] == 0 and set(np.diff(span_N).tolist()) <= {0, 1} and span_N[-1] == spans.count - 1
            if len(span_N) > 1:  # the end of the sequence stands alone
                assert span_N[-2] == spans.count - 2
        # from the definition: a span ends at each offset at which both have a token's end
        shared = sorted(set(ends[0].tolist()) & set(ends[1].tolist()))
        assert spans.count == len(shared)
        for span_N, ends_N in zip((spans.teacher_N, spans.student_N), ends, strict=True):
            assert [ends_N[span_N == c].max().item() for c in range(spans.count)] == shared
        if teacher is student:
            assert spans.student_N.tolist() == list(range(len(ends[0])))


def test_common_spans_by_hand():
    spans = common_spans(np.array([2, 5, 6, 9, 10]), np.array([1, 5, 5, 8, 9, 10]))
    assert spans.count == 3
    assert spans.teacher_N.tolist() == [0, 0, 1, 1, 2]
    assert spans.student_N.tolist() == [0, 0, 1, 1, 1, 2]


def test_tokens_after_the_last_common_end_are_in_no_span():
    spans = common_spans(np.array([2, 4]), np.array([2, 3, 5]))
    assert spans.count == 1
    assert spans.teacher_N.tolist() == [0, -1] and spans.student_N.tolist() == [0, -1, -1]


def stored_row(tokenizer, text, *, prompt=(1, 2, 3), targets_of_prompt=0, source="teacher"):
    ids = encode_response(tokenizer, text)[: None if source == "teacher" else -1]
    logprobs = -np.arange(1, len(ids) + 1 + targets_of_prompt, dtype=np.float32)
    ids_T = np.array([*prompt, *ids], dtype=np.int32)
    return Row(0, text, source, ids_T, len(prompt), NextTokenTargets(logprobs))


def test_a_row_in_the_students_tokens(shared_data):
    from distill.stages._aligned_rows import Aligner, batch_spans

    # teacher: ▁He ll o ▁ F0 9F A4 97 end; student: "Hello", " ", then F0 9F, A4, 97, end, as GPT-2 cuts them
    teacher, student, text = stories(shared_data), gpt2(shared_data), "Hello 🤗"
    tokens = student.convert_ids_to_tokens(ids_of(student, text))
    assert tokens == ["Hello", "ĠðŁ", "¤", "Ĺ"]
    for more in (0, 2):  # the prompt's own targets stand before the response's
        row = stored_row(teacher, text, targets_of_prompt=more)
        aligned = Aligner(teacher, student).align(row, [7, 8])
        assert aligned.prompt_length == 2
        assert aligned.input_ids_T.tolist() == [7, 8, *encode_response(student, text)]
        assert aligned.span_T.tolist() == [-1, 0, 1, 2, 3, 4, -1]
        spans = [[1, 2, 3], [4, 5, 6], [7], [8], [9]]
        assert aligned.span_logprob_C.tolist() == [-sum(part) - more * len(part) for part in spans]

    cut = aligned.cut(4)
    assert cut.span_T.tolist() == [-1, 0, 1, -1] and len(cut.span_logprob_C) == 2
    assert aligned.cut(7) is aligned
    batch = batch_spans([cut, aligned], 8)
    assert batch["span"].dtype == np.int64 and batch["span_logprob"].dtype == np.float32
    assert batch["span"].tolist() == [[-1, 0, 1, *[-1] * 5], [-1, 0, 1, 2, 3, 4, -1, -1]]
    assert batch["span_logprob"][0].tolist() == [*aligned.span_logprob_C[:2].tolist(), 0, 0, 0]


def test_a_span_that_is_cut_through_is_dropped(shared_data):
    from distill.stages._aligned_rows import Aligner

    teacher, student, text = gpt2(shared_data), stories(shared_data), "Hello there"
    aligned = Aligner(teacher, student).align(stored_row(teacher, text), [5])
    assert aligned.span_T.tolist()[:3] == [0, 0, 0]  # "Hello" is three tokens of the student
    assert aligned.cut(3).span_T.tolist() == [-1, -1, -1]
    assert aligned.cut(4).span_T.tolist() == [0, 0, 0, -1]


def test_a_cut_answer_does_not_end(shared_data):
    from distill.stages._aligned_rows import Aligner

    teacher, student = gpt2(shared_data), stories(shared_data)
    aligned = Aligner(teacher, student).align(stored_row(teacher, "Hello there", source="teacher, cut"), [5])
    assert student.eos_token_id not in aligned.input_ids_T
    assert len(aligned.span_logprob_C) == 2


def test_rows_without_log_probabilities_are_refused(shared_data):
    from distill.errors import TargetMismatch
    from distill.stages._aligned_rows import Aligner

    tokenizer = stories(shared_data)
    aligner = Aligner(tokenizer, tokenizer)
    with pytest.raises(TargetMismatch, match="holds no targets"):
        aligner.align(Row(3, "x", "teacher"), [1])
    short = stored_row(tokenizer, "Hello")
    short = Row(3, "Hello", "teacher", short.input_ids_T, 3, short.targets.part(0, 2))
    with pytest.raises(TargetMismatch, match="4 response tokens, but 2"):
        aligner.align(short, [1])
