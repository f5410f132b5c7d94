"""data=local: three formats, one meaning; slices; every wrong file is named with its line."""

import json

import pytest

from distill.checkpoint import checkpoint_folder
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


def test_a_byte_order_mark_is_no_part_of_the_first_row(files):
    """As Windows' own programs write UTF-8."""
    for suffix in ("jsonl", "csv"):
        marked = files / f"marked.{suffix}"
        marked.write_bytes(b"\xef\xbb\xbf" + (files / f"rows.{suffix}").read_bytes())
        assert local(marked).load().train == local(files / f"rows.{suffix}").load().train


def test_a_long_document_fits_a_csv(tmp_path):
    document = "once upon a time " * 20_000
    (tmp_path / "long.csv").write_text(f'question,answer\nsum it up,"{document}"\nagain,no\n')
    examples = local(tmp_path / "long.csv").load()
    assert {e.response for e in [*examples.train, *examples.evaluation["exact_match"]]} == {document, "no"}


def test_a_suffix_may_be_written_in_capitals(files):
    copy = files / "ROWS.CSV"
    copy.write_bytes((files / "rows.csv").read_bytes())
    assert local(copy).load().train == local(files / "rows.csv").load().train


def test_blank_texts_are_left_out_and_counted(tmp_path):
    """A third of wikitext's rows are such."""
    (tmp_path / "t.jsonl").write_text('{"text": ""}\n{"text": "once"}\n{"text": " \\n "}\n')
    options = {"text_field": "text", "eval_path": str(tmp_path / "t.jsonl")}
    examples = Local(kind="local", path=str(tmp_path / "t.jsonl"), **options).load()
    assert [e.response for e in (*examples.train, *examples.evaluation["exact_match"])] == ["once", "once"]
    assert examples.notes == ("2 of 3 texts are blank.",)
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match=r"1 of 1 texts are blank\. None is left"):
        Local(kind="local", path=str(tmp_path / "b.jsonl"), text_field="text").load()


def test_blanks_are_no_answer(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\n1,\n2,  \n")
    assert [e.response for e in local(tmp_path / "a.csv", eval_path=str(tmp_path / "a.csv")).load().train] == [None] * 2


def test_nan_is_a_value_that_is_missing(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "1", "answer": NaN, "more": NaN}\n')
    path = tmp_path / "a.jsonl"
    (example,) = local(path, eval_path=str(path)).load().train
    assert example.response is None
    (example,) = local(path, eval_path=str(path), prompt_template="{question} {more}").load().train
    assert example.prompt == "1"
    with pytest.raises(DataError, match="'answer' is null"):
        local(path, prompt_field="answer").load()


def test_an_escaped_character_outside_the_first_plane_is_whole(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "\\ud83d\\ude00", "answer": "x", "unused": "\\ud83d"}\n')
    (example,) = local(tmp_path / "a.jsonl", eval_path=str(tmp_path / "a.jsonl")).load().train
    assert example.prompt == "\U0001f600"


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
        ("a.jsonl", '{"question": "cut \\ud83d", "answer": "1"}\n', ["a.jsonl, line 1", "\\ud83d", "half"]),
        ("a.csv", "question,answer\nx,1\n ,2\n", ["a.csv, line 3", "prompt is empty"]),
        ("a.jsonl", "", ["holds no rows"]),
        ("a.jsonl", '{"text": "1", "label": "2"}\n', ["line 1", "'question'", "text, label", "data.prompt_field"]),
        ("a.csv", "question,answer\n1,2\n1\n", ["a.csv, line 3", "2 columns"]),
        ("a.csv", "", ["holds no rows"]),
        ("a.csv", "question,answer,answer\n1,2,3\n", ["a.csv", "two columns", "'answer'"]),
        ("a.jsonl", '[\n {"question": "1"}\n]\n', ["a.jsonl, line 1", "one whole JSON object"]),
        ("a.xlsx", "x", [".xlsx", ".jsonl, .csv, .parquet"]),
        ("a.jsonl", '{"question": "1", "answer": ["x"]}\n', ["'answer'", "list"]),
        ("a.jsonl", '{"question": [{"role": "user"}], "answer": "1"}\n', ["'question'", "list", "data.messages_field"]),
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
    (files / "one.jsonl").write_text('{"question": "1", "answer": "2"}\n')
    with pytest.raises(DataError, match=r"one row.*data\.eval_path"):
        local(files / "one.jsonl").load()
    with pytest.raises(DataError, match="leaves no row of the 27"):
        local(files / "rows.csv", rows="100:").load()


def test_the_first_evaluation_rows_stand_for_all(shared_data):
    """banking77's test file is sorted by intent, and likelihoods are measured on its first rows alone."""
    options = {"prompt_field": "text", "response_field": "category"}
    options["eval_path"] = str(shared_data / "banking77/test.csv")
    train = shared_data / "banking77/train.csv"
    rows = local(train, **options).load().evaluation["exact_match"]
    # 300 draws out of 77 classes of 40 rows each miss 1.5 of them on average
    assert len({row.response for row in rows[:300]}) >= 70
    few = local(train, evaluation_rows=50, **options).load()
    assert few.evaluation["exact_match"] == rows[:50]


def test_a_tilde_is_the_users_home(files, monkeypatch):
    """No shell expands it behind `data.path=`, nor in a recipe."""
    monkeypatch.setenv("HOME", str(files))
    assert local("~/rows.csv").path == str((files / "rows.csv").resolve())
    assert local("~/no.csv").path == "~/no.csv"
    (files / "teacher").mkdir()
    assert checkpoint_folder("~/teacher") == str((files / "teacher").resolve())


def test_banking77_splits_as_the_recipes_do(shared_data):
    options = {
        "prompt_field": "text",
        "response_field": "category",
        "eval_path": str(shared_data / "banking77/test.csv"),
    }
    train = str(shared_data / "banking77/train.csv")
    teacher, student = (Local(kind="local", path=train, rows=rows, **options).load() for rows in (":5000", "5000:"))
    assert (len(teacher.train), len(student.train), len(student.evaluation["exact_match"])) == (5000, 5003, 3080)


class TestPromptTemplate:
    @pytest.fixture
    def notes(self, tmp_path):
        rows = [{"title": "A {b}", "text": f"Habari {n}", "context": None if n else "yes", "n": n} for n in range(2)]
        (tmp_path / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "notes.jsonl"

    def prompts(self, path, template):
        options = {"prompt_template": template, "response_field": "n", "eval_path": str(path)}
        return {e.prompt for e in Local(kind="local", path=str(path), **options).load().train}

    def test_fields_in_braces_are_filled_and_nothing_else(self, notes):
        assert self.prompts(notes, "{title}: {text}, {{n}} = {n}") == {
            "A {b}: Habari 0, {n} = 0",
            "A {b}: Habari 1, {n} = 1",
        }

    def test_an_empty_field_leaves_no_blanks_at_the_ends(self, notes):
        assert self.prompts(notes, "{text}\n\n{context}") == {"Habari 0\n\nyes", "Habari 1"}

    def test_a_field_that_no_row_has_is_named_with_those_that_are_there(self, notes):
        with pytest.raises(DataError) as refused:
            self.prompts(notes, "{txt}")
        for word in ("notes.jsonl, line 1", "{txt}", "title, text, context, n"):
            assert word in str(refused.value)

    def test_lists_are_no_text(self, tmp_path):
        (tmp_path / "x.jsonl").write_text('{"text": ["a"], "n": 1}\n')
        with pytest.raises(DataError, match="holds list, not text"):
            self.prompts(tmp_path / "x.jsonl", "{text}")

    @pytest.mark.parametrize(
        "template", ["no field", "{text.__class__}", "{text[0]}", "{text!r}", "{text:>9}", "{}", "{text", "text}"]
    )
    def test_templates_that_want_more_than_text_are_refused(self, template):
        with pytest.raises(ValueError, match="prompt_template"):
            Local(kind="local", path="x.jsonl", prompt_template=template)

    @pytest.mark.parametrize("other", [{"text_field": "text"}, {"messages_field": "messages"}])
    def test_it_is_the_only_one_that_says_what_the_prompt_is(self, other):
        with pytest.raises(ValueError, match=f"prompt_template and {next(iter(other))}"):
            Local(kind="local", path="x.jsonl", prompt_template="{text}", **other)


class TestHub:
    """A folder with the hub's own layout stands in for the hub: `datasets` reads both with the same code."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

        kind = datasets.ClassLabel(names=["uchumi", "michezo"])
        features = datasets.Features({"text": datasets.Value("string"), "label": kind})
        rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
        files = {name: tmp_path / "set" / name for name in ("main", "other")}
        for file in files.values():
            file.mkdir(parents=True)
            rows.to_parquet(file / "train-0.parquet")
        configs = "".join(f"- config_name: {n}\n  data_files: {n}/train-*\n" for n in files)
        (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        return str(tmp_path / "set")

    def test_a_subset_is_named_and_class_labels_are_words(self, folder):
        from distill.data._rows import _hub

        rows = [row for _, row in _hub(folder, "train", "main")]
        assert [row["label"] for row in rows] == ["michezo", "uchumi", None]

    def test_a_set_of_several_subsets_asks_for_one(self, folder):
        from distill.data._rows import _hub

        with pytest.raises(DataError) as refused:
            list(_hub(folder, "train", None))
        assert "data.subset" in str(refused.value) and "['main', 'other']" in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("eval_path", "found"), [("nothere.jsonl", "no such file"), ("", "is empty"), (".", "is a folder")]
)
def test_the_key_that_named_the_file_is_named(tmp_path, monkeypatch, eval_path, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(DataError) as refused:
        Local(kind="local", path="train.jsonl", eval_path=eval_path).load()
    assert found in str(refused.value)
    assert "data.eval_path" in str(refused.value) and "data.path" not in str(refused.value)
    with pytest.raises(DataError, match=r"data\.path"):
        Local(kind="local", path=eval_path).load()
