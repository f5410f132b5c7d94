"""Dialogues as training rows. One is written "u: hello | a: hi": who speaks, what is said."""

import json

import pytest

from distill.data.local import Local
from distill.errors import DataError

SPEAKERS = {"u": "user", "a": "assistant", "s": "system"}


def write(path, *dialogues, speaker="role", content="content", names=SPEAKERS):
    rows = []
    for dialogue in dialogues:
        turns = [turn.split(": ") for turn in dialogue.split(" | ")] if dialogue else []
        rows.append({"messages": [{speaker: names[who], content: text} for who, text in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path, **options):
    options = {"messages_field": "messages", "eval_path": str(path), **options}
    return Local(kind="local", path=str(path), **options).load()


def said(example):
    letters = {role: letter for letter, role in SPEAKERS.items()}
    return " | ".join(f"{letters[turn['role']]}: {turn['content']}" for turn in example.prompt), example.response


@pytest.mark.parametrize(
    ("dialogue", "last", "every"),
    [
        ("u: 1 | a: 2", [("u: 1", "2")], [("u: 1", "2")]),
        (
            "s: 0 | u: 1 | a: 2 | u: 3 | a: 4 | u: 5",
            [("s: 0 | u: 1 | a: 2 | u: 3", "4")],
            [("s: 0 | u: 1", "2"), ("s: 0 | u: 1 | a: 2 | u: 3", "4")],
        ),
        # the agent greets first: what it says then is context, and answers nobody
        ("a: 1 | u: 2 | a: 3", [("a: 1 | u: 2", "3")], [("a: 1 | u: 2", "3")]),
        ("u: 1 | a: 2 | a: 3", [("u: 1 | a: 2", "3")], [("u: 1", "2"), ("u: 1 | a: 2", "3")]),
        ("u: 1 | a:   | u: 3 | a: 4", [("u: 1 | a:   | u: 3", "4")], [("u: 1 | a:   | u: 3", "4")]),
        ("u: 1 | u: 2", [("u: 1 | u: 2", None)], [("u: 1 | u: 2", None)]),
    ],
)
def test_which_turns_are_learnt(tmp_path, dialogue, last, every):
    path = write(tmp_path / "chat.jsonl", dialogue)
    assert [said(example) for example in load(path).train] == last
    assert [said(example) for example in load(path, turns="all").train] == every


def weighted(path, *turns):
    messages = [{"role": SPEAKERS[who], "content": text, "weight": weight} for who, text, weight in turns]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.mark.parametrize(
    ("weights", "last", "every"),
    [
        ((0, 1), ("u: 1 | a: 2 | u: 3", "4"), [("u: 1 | a: 2 | u: 3", "4")]),
        ((1, 0), ("u: 1", "2"), [("u: 1", "2")]),
        # as a table keeps them where some turns have none
        ((0.0, None), ("u: 1 | a: 2 | u: 3", "4"), [("u: 1 | a: 2 | u: 3", "4")]),
        ((None, 1.0), ("u: 1 | a: 2 | u: 3", "4"), [("u: 1", "2"), ("u: 1 | a: 2 | u: 3", "4")]),
    ],
)
def test_an_answer_of_weight_0_is_said_and_not_learnt(tmp_path, weights, last, every):
    first, second = weights
    turns = [("u", "1", None), ("a", "2", first), ("u", "3", 0), ("a", "4", second)]
    path = weighted(tmp_path / "chat.jsonl", *turns)
    assert [said(example) for example in load(path).train] == [last]
    assert [said(example) for example in load(path, turns="all").train] == every


def test_a_dialogue_of_which_nothing_is_learnt_is_no_prompt_either(tmp_path):
    path = weighted(tmp_path / "chat.jsonl", ("u", "1", None), ("a", "2", 0))
    with pytest.raises(DataError, match=r"1 of 1 dialogues"):
        load(path)


@pytest.mark.parametrize("weight", [0.5, "0", -1, [0]])
def test_a_weight_between_learnt_and_not_is_refused(tmp_path, weight):
    path = weighted(tmp_path / "chat.jsonl", ("u", "1", None), ("a", "2", weight))
    with pytest.raises(DataError, match=r"line 1: turn 2 has weight .*; 0 \(not learnt\) or 1 is needed"):
        load(path)


def test_dialogues_in_which_nobody_is_answered_are_counted(tmp_path):
    path = write(tmp_path / "chat.jsonl", "a: hello", "", "u: 1 | a: 2")
    examples = load(path, turns="all")
    assert [said(example) for example in examples.train] == [("u: 1", "2")]
    assert examples.notes == ("2 of 3 dialogues have no turn to learn that answers another one.",)
    with pytest.raises(DataError, match=r"1 of 1 dialogues .* None is left"):
        load(write(tmp_path / "b.jsonl", "a: hello"))


def test_evaluation_shares_no_dialogue_with_training(tmp_path):
    dialogues = [f"u: {n} one | a: {n} two | u: {n} three | a: {n} four" for n in range(40)]
    path = write(tmp_path / "chat.jsonl", *dialogues)
    examples = load(path, turns="all", eval_path=None, labelled_rows=10)
    numbers = {
        part: [example.prompt[0]["content"].split()[0] for example in rows]
        for part, rows in (("train", examples.train), ("evaluation", examples.evaluation["exact_match"]))
    }
    assert not set(numbers["train"]) & set(numbers["evaluation"])
    assert len(numbers["train"]) == 2 * 36 and len(numbers["evaluation"]) == 2 * 4
    # ten dialogues are labelled, with both of their turns
    assert [example.response is not None for example in examples.train] == [True] * 20 + [False] * 52


def test_slices_cut_between_dialogues(tmp_path):
    path = write(tmp_path / "chat.jsonl", *[f"u: {n} | a: x | u: y | a: z" for n in range(6)])
    first, rest = (load(path, turns="all", rows=rows).train for rows in (":2", "2:"))
    assert (len(first), len(rest)) == (4, 8)
    assert not {e.prompt[0]["content"] for e in first} & {e.prompt[0]["content"] for e in rest}


def test_an_agent_of_another_name_in_other_fields(tmp_path):
    names = {"u": "Kunde", "a": "Agentin", "s": "system"}
    path = write(tmp_path / "chat.jsonl", "s: 0 | u: 1 | a: 2", speaker="who", content="what", names=names)
    options = {"speaker_field": "who", "content_field": "what", "agent": "Agentin"}
    assert [said(example) for example in load(path, **options).train] == [("s: 0 | u: 1", "2")]


def test_an_agent_of_another_name_that_nobody_named_is_told(tmp_path):
    """ShareGPT's names; else the answers would be asked as part of the prompt."""
    names = {"u": "human", "a": "gpt", "s": "system"}
    path = write(tmp_path / "chat.jsonl", "s: 0 | u: 1 | a: 2", names=names)
    with pytest.raises(DataError, match=r"line 1: nobody .* 'assistant'.* 'human', 'gpt'.*data\.agent="):
        load(path)
    assert [said(example) for example in load(path, agent="gpt").train] == [("s: 0 | u: 1", "2")]


def test_wrong_names_of_fields_are_told(tmp_path):
    path = write(tmp_path / "chat.jsonl", "u: 1 | a: 2", speaker="who", content="what")
    with pytest.raises(DataError) as refused:
        load(path)
    for word in ("role and content", "who (str), what (str)", "data.speaker_field", "messages"):
        assert word in str(refused.value)


@pytest.mark.parametrize("call", [{"tool_calls": [{"function": {"name": "f"}}]}, {"function_call": {"name": "f"}}])
@pytest.mark.parametrize("content", ["", None, "I look it up."])
def test_a_call_of_a_tool_outside_the_text_is_not_left_out_in_silence(tmp_path, call, content):
    said = [("user", "1"), ("assistant", content), ("tool", "2"), ("assistant", "3")]
    # in parquet every turn has every field
    none = dict.fromkeys(call)
    turns = [{"role": who, "content": text, **(call if text == content else none)} for who, text in said]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(DataError, match=rf"line 1: turn 2 has {next(iter(call))}, .*the turn's content"):
        load(tmp_path / "chat.jsonl")


def test_the_turn_that_is_wrong_is_the_one_that_is_named(tmp_path):
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": [{"type": "text", "text": "2"}]}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(DataError, match=r"Turn 2 has role \(str\), content \(list\)"):
        load(tmp_path / "chat.jsonl")


def test_every_turn_needs_a_field_of_turns():
    with pytest.raises(ValueError, match="messages_field"):
        Local(kind="local", path="x.jsonl", turns="all")


def test_real_dialogues_with_an_agent_called_system(shared_data):
    path = shared_data / "sgd_dialogues/test.jsonl"
    options = {"speaker_field": "speaker", "content_field": "text", "agent": "SYSTEM", "messages_field": "turns"}
    agents_turns = sum(line.count('"speaker": "SYSTEM"') for line in path.read_text().splitlines())
    examples = load(path, turns="all", **options)
    assert len(examples.train) == agents_turns
    assert all(example.prompt[0]["role"] == example.prompt[-1]["role"] == "user" for example in examples.train)
    assert len(load(path, **options).train) == 666
