"""data=local: three formats, one meaning; slices; every wrong file is named with its line."""

import json

import pytest

from distill.data.local import Local, parse_slice
from distill.errors import DataError

ROWS = [{"question": f"question {n}", "answer": f"answer {n}"} for n in range(30)]


@pytest.fixture
def files(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    lines = ["question,answer", *(f"{row['question']},{row['answer']}" for row in ROWS)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    return tmp_path


def local(path, **options):
    options = {"prompt_field": "question", "response_field": "answer", **options}
    return Local(kind="local", path=str(path), **options)


def test_the_three_formats_give_the_same_rows(files):
    loaded = [local(files / f"rows.{suffix}").load() for suffix in ("jsonl", "csv", "parquet")]
    assert loaded[0].train == loaded[1].train == loaded[2].train
    assert len(loaded[0].train) == 27 and len(loaded[0].evaluation["exact_match"]) == 3
    prompts = {e.prompt for e in loaded[0].train} | {e.prompt for e in loaded[0].evaluation["exact_match"]}
    assert prompts == {row["question"] for row in ROWS}


def test_slices_cut_the_same_shuffle_into_parts_that_do_not_meet(files):
    first = local(files / "rows.jsonl", rows=":10", eval_path=str(files / "rows.csv")).load().train
    rest = local(files / "rows.jsonl", rows="10:", eval_path=str(files / "rows.csv")).load().train
    assert len(first) == 10 and len(rest) == 20
    assert {e.prompt for e in first} | {e.prompt for e in rest} == {row["question"] for row in ROWS}
    assert [e.prompt for e in first] != [row["question"] for row in ROWS[:10]], "it is shuffled"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(None, slice(None)), (5, slice(5)), ("5:", slice(5, None)), (":5", slice(None, 5)), ("2:7", slice(2, 7))],
)
def test_parse_slice(rows, expected):
    assert parse_slice(rows) == expected


def test_rows_beyond_labelled_rows_have_no_answer(files):
    train = local(files / "rows.jsonl", labelled_rows=4).load().train
    assert [e.response is not None for e in train] == [True] * 4 + [False] * 23


def test_the_fingerprint_follows_content_and_cut_not_the_path(files):
    copy = files / "elsewhere.jsonl"
    copy.write_bytes((files / "rows.jsonl").read_bytes())
    one, same = (local(p).load().fingerprint for p in (files / "rows.jsonl", copy))
    assert one == same
    assert one != local(copy, rows=5).load().fingerprint
    copy.write_text(copy.read_text().replace("answer 1", "answer one"))
    assert one != local(copy).load().fingerprint


def test_messages_end_before_the_last_assistant_turn(tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    (example,) = Local(kind="local", path=str(tmp_path / "chat.jsonl"), messages_field="messages").load().train
    assert example.response == "d"
    assert [turn["content"] for turn in example.prompt] == ["a", "b", "c"]


def test_plain_text_has_an_empty_prompt(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "once"}\n{"text": "twice"}\n')
    (example,) = Local(kind="local", path=str(tmp_path / "t.jsonl"), text_field="text").load().train
    assert example.prompt == "" and example.response in {"once", "twice"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"question": "1"}\n{"question": \n', ["a.jsonl, line 2", "not JSON"]),
        ("a.jsonl", "[1, 2]\n", ["a.jsonl, line 1", "list"]),
        ("a.jsonl", "", ["holds no rows"]),
        ("a.jsonl", '{"text": "1", "label": "2"}\n', ["line 1", "'question'", "text, label", "data.prompt_field"]),
        ("a.csv", "question,answer\n1,2\n1\n", ["a.csv, line 3", "2 columns"]),
        ("a.csv", "", ["holds no rows"]),
        ("a.xlsx", "x", [".xlsx", ".jsonl, .csv, .parquet"]),
        ("a.jsonl", '{"question": "1", "answer": ["x"]}\n', ["'answer'", "list"]),
        ("a.csv", "question,answer\n\xe9t\xe9,1\n".encode("latin-1"), ["a.csv", "UTF-8"]),
        ("a.parquet", "no parquet", ["a.parquet", "cannot be read"]),
    ],
)
def test_wrong_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as refused:
        local(tmp_path / name).load()
    assert all(word in str(refused.value) for word in words), refused.value


def test_missing_files_and_empty_slices_are_named(files):
    with pytest.raises(DataError, match="no such file"):
        local("./missing.jsonl").load()
    with pytest.raises(DataError, match="leaves no row of the 27"):
        local(files / "rows.csv", rows="100:").load()


def test_banking77_splits_as_the_recipes_do(shared_data):
    options = {
        "prompt_field": "text",
        "response_field": "category",
        "eval_path": str(shared_data / "banking77/test.csv"),
    }
    train = str(shared_data / "banking77/train.csv")
    teacher, student = (Local(kind="local", path=train, rows=rows, **options).load() for rows in (":5000", "5000:"))
    assert (len(teacher.train), len(student.train), len(student.evaluation["exact_match"])) == (5000, 5003, 3080)
