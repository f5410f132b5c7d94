"""distill/data/known.py: facts agree with themselves, and every sample looks like its data set."""

import re

import pytest

from distill.data.known import DATA_SETS, data_set
from distill.data.local import Local

EACH = pytest.mark.parametrize("known", DATA_SETS, ids=lambda known: known.hub_id)


def type_of(value: object) -> str:
    if isinstance(value, list):
        turns = all(isinstance(turn, dict) and set(turn) == {"role", "content"} for turn in value)
        return "messages" if turns else "list"
    return {str: "text", int: "int"}[type(value)]


@EACH
def test_samples_have_exactly_the_columns_of_the_data_set(known):
    rows = known.rows()
    assert len(rows) >= 32
    assert {tuple((name, type_of(value)) for name, value in row.items()) for row in rows} == {
        tuple(known.columns.items())
    }
    assert set(known.characters_per_row) <= set(known.columns)


@EACH
def test_samples_vary_and_are_not_all_ascii(known):
    rows = [str(row) for row in known.rows()]
    assert len(set(rows)) == len(rows)
    assert max(map(len, rows)) > 1.5 * min(map(len, rows))
    assert not all(row.isascii() for row in rows)


def test_a_data_set_is_found_by_its_hub_id_only():
    assert data_set("OpenAI/gsm8k").splits == {"train": 7473, "test": 1319}
    assert data_set("openai/gsm8k_x") is None
    assert data_set("train.csv") is None


def test_worked_answers_are_right():
    for row in data_set("openai/gsm8k").rows():
        for left, result in re.findall(r"<<([-+*/0-9]+)=(-?[0-9.]+)>>", row["answer"]):
            assert eval(left) == float(result), row  # digits and signs alone
        last = re.findall(r"=([0-9]+)>>", row["answer"])[-1]
        assert row["answer"].endswith(f"#### {last}")


def test_code_samples_are_python():
    for row in data_set("bigcode/self-oss-instruct-sc2-exec-filter-50k").rows():
        (code,) = re.findall(r"```python\n(.*?)```", row["response"], re.DOTALL)
        compile(code, "sample", "exec")


def test_characters_are_known_or_else_the_samples_mean():
    assert data_set("openai/gsm8k").characters("question") == 235
    dialogues = data_set("HuggingFaceTB/everyday-conversations-llama3.1-2k")
    by_hand = [sum(len(turn["content"]) for turn in row["messages"]) for row in dialogues.rows()]
    assert dialogues.characters("messages") == pytest.approx(sum(by_hand) / len(by_hand))


def test_measured_characters_of_the_real_gsm8k(shared_data):
    path = str(shared_data / "gsm8k/train.jsonl")
    train = Local(kind="local", path=path, eval_path=path, prompt_field="question", response_field="answer").load()
    known = data_set("openai/gsm8k")
    assert len(train.train) == known.splits["train"]
    for column, texts in (("question", [e.prompt for e in train.train]), ("answer", [e.response for e in train.train])):
        assert sum(map(len, texts)) / len(texts) == pytest.approx(known.characters(column), abs=1)
