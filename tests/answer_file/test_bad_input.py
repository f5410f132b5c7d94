"""What is wrong with a file is said in a short message: which line, what was found, what is needed."""

import json

import pytest

from distill.answer_file import match, read_answers, targets_layout, to_row
from distill.encoding import load_tokenizer
from distill.errors import DataError
from distill.example import Example
from distill.teacher.file import File
from tests.answer_file import layouts

GOOD = {"prompt": "What?", "response": "x"}


def read(tmp_path, *lines, **settings):
    file = tmp_path / "a.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return list(read_answers(File(kind="file", path=str(file), **settings)))


def entry(token, logprob, *top):
    return {"id": token, "logprob": logprob, "top": [list(pair) for pair in top]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: holds list"),
        ({"prompt": "a", "response": "\ude00"}, r"line 2: \\ude00 is half of a character"),
        ({"response": "x"}, r"line 2: no field 'prompt'\. Fields there: response\..*teacher\.prompt_field"),
        ({"prompt": "a"}, r"line 2: no field 'response'.*teacher\.response_field"),
        ({"prompt": "a", "response": ""}, "line 2: the response is empty"),
        ({"prompt": "a", "response": ["x"]}, "line 2: field 'response' holds list; text"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 2: the last of 1 turns in 'messages' is 'user'"),
        ({"messages": "a", "response": "x"}, "line 2: field 'messages' must hold a list of turns"),
        ({**GOOD, "tokens": ["a"]}, "line 2: field 'tokens' must hold token ids"),
        ({**GOOD, "tokens": [2**40]}, "line 2: found token id 1099511627776"),
        ({**GOOD, "tokens": [-4]}, "line 2: found token id -4"),
        ({**GOOD, "tokens": [4, 5], "logprobs": [entry(4, -1.0)]}, "line 2: 2 tokens but 1 log-probabilities"),
        (
            {**GOOD, "tokens": [4], "logprobs": [entry(5, -1.0)]},
            "line 2: token 0 is 4, but its log-probability is of 5",
        ),
        ({**GOOD, "logprobs": [{"id": 4}]}, "line 2: an entry of 'logprobs' is not as it must be"),
        ({**GOOD, "logprobs": -1.0}, "line 2: field 'logprobs' holds float"),
        ({**GOOD, "logprobs": [entry(4, 0.5)]}, r"line 2: a log-probability is 0\.5"),
        ({**GOOD, "logprobs": [entry(4, float("nan"))]}, "line 2: a log-probability is not a number"),
        ({**GOOD, "logprobs": [entry(4, -1.0, (4, 0.5))]}, r"line 2: a log-probability is 0\.5"),
        ({**GOOD, "logprobs": [entry(4, -1.0, (4, -1.0), (4, -2.0))]}, "line 2: position 0 gives a token id twice"),
        ({**GOOD, "logprobs": [entry(4, -1.0, ("x", -1.0))]}, "line 2: position 0 holds something that is no token id"),
    ],
)
def test_a_line_of_our_own_layout(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, GOOD, line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"logprobs": [[{"token": "x", "logprob": -1.0}]]}, "must be lists of"),
        ({"logprobs": [None]}, "no row of 'logprobs' holds"),
        ({"logprobs": 4, "target_token_ids": []}, "field 'logprobs' holds int; a list"),
        ({"logprobs": [[-1.0]], "target_token_ids": []}, "0 rows of target_token_ids, but 1"),
        ({"logprobs": [[-1.0]], "target_token_ids": [[1, 2]]}, "position 0 has 2 token ids and 1 log-prob"),
    ],
)
def test_axolotl(tmp_path, line, message):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        read(tmp_path, {"messages": turns, **line}, layout="axolotl")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "2 tokens, but 1 rows of target_token_ids"),
        ({"input_ids": ["a"]}, "field 'input_ids' must hold token ids"),
        ({"input_ids": 4}, "field 'input_ids' must hold token ids"),
        ({"target_token_ids": 4}, "field 'target_token_ids' holds int; a list"),
        ({"target_token_ids": [4, 5], "target_logprobs": [[0.0], [0.0]]}, "position 0 holds something"),
    ],
)
def test_axolotl_prepared(tmp_path, wrong, message):
    line = {"input_ids": [1, 2], "target_token_ids": [[1]], "target_logprobs": [[0.0]], **wrong}
    with pytest.raises(DataError, match=f"line 1: {message}"):
        read(tmp_path, line)


def test_distillkit_without_its_settings(said, tmp_path):
    folder = layouts.distillkit_capture(tmp_path / "d", said, layouts.CAPTURE, pad=1)
    settings = folder / "compression_config.yaml"
    text = settings.read_text()
    for wrong, message in [
        (text.replace("k: 8", "k: 9"), r"row 1: 32 bytes for each token.*compression_config\.yaml"),
        (text.replace("k: 8", "k: many"), "k: Input should be a valid integer"),
        ("[", "not YAML"),
        ("", "no settings in it"),
    ]:
        settings.write_text(wrong)
        with pytest.raises(DataError, match=message):
            list(read_answers(File(kind="file", path=str(folder))))
    settings.rename(tmp_path / "c.yaml")
    with pytest.raises(DataError, match=r"no such file.*teacher\.compression"):
        list(read_answers(File(kind="file", path=str(folder))))
    (tmp_path / "c.yaml").write_text(text)
    assert len(list(read_answers(File(kind="file", path=str(folder), compression=str(tmp_path / "c.yaml"))))) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.jsonl", r"teacher\.path=.*no such file"),
        ("./no", r"teacher\.path=\./no: no such file"),
        ("a.txt", "cannot read .txt"),
        ("empty", "no .parquet file in this folder"),
        ("empty.jsonl", "holds no rows"),
        ("cut.parquet", "cannot be read after 0 rows"),
    ],
)
def test_files(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=message):
        list(read_answers(File(kind="file", path=name)))


def test_no_prompt_in_common_names_both(tmp_path):
    with pytest.raises(DataError, match=r"none of the 1 answers.*first prompt is What\?, the data's Why\?"):
        match(read(tmp_path, GOOD), [Example(prompt="Why?")])


def test_how_many_found_each_other_is_said(tmp_path):
    answers = read(tmp_path, GOOD, {**GOOD, "response": "y"}, {"prompt": "Who?", "response": "z"})
    found = match(answers, [Example(prompt="What?"), Example(prompt="Why?")])
    assert [answer and answer.text for answer in found.answers] == ["x", None]
    assert found.note.startswith("1 of 2 prompts have no answer in the file and are left out; 2 of the file's")


def test_the_same_prompt_twice_gets_both_answers_in_order(tmp_path):
    answers = read(tmp_path, GOOD, {**GOOD, "response": "y"})
    turn = Example(prompt=({"role": "user", "content": "What?"},))
    found = match(answers, [Example(prompt="What?"), turn, turn])
    assert [answer.text for answer in found.answers] == ["x", "y", "y"]
    assert found.note is None


def test_plain_text_is_joined_by_itself(tmp_path):
    answers = read(tmp_path, {"prompt": "", "response": "once"}, {"prompt": "", "response": "upon"})
    found = match(answers, [Example(prompt="", response="upon")])
    assert found.answers[0].text == "upon"


def row(answer, example, tokenizer, **settings):
    layout = targets_layout([answer], File(kind="file", path="a.jsonl", **settings), 640)
    return to_row(answer, 0, example, tokenizer, layout, None)


def test_rows_that_do_not_fit_the_tokenizer(said, examples, tokenizer, tmp_path):
    good = layouts.ours(said[0], 4)
    [other_text] = read(tmp_path, {**good, "response": "something else"})
    with pytest.raises(DataError, match=r"its tokens read .*its text is 'something else'.*teacher\.tokenizer"):
        row(other_text, examples[0], tokenizer)
    unknown = [*good["tokens"][:-1], 700]
    entries = [*good["logprobs"][:-1], {**good["logprobs"][-1], "id": 700}]
    [outside] = read(tmp_path, {**good, "tokens": unknown, "logprobs": entries})
    with pytest.raises(DataError, match="found a token 700, but the tokenizer has 640 tokens"):
        row(outside, examples[0], tokenizer)
    top = {**good["logprobs"][0], "top": [[700, -1.0]]}
    [outside] = read(tmp_path, {**good, "logprobs": [top, *good["logprobs"][1:]]})
    with pytest.raises(DataError, match="found a log-probability of token 700"):
        row(outside, examples[0], tokenizer)


def test_rows_for_too_few_or_too_many_tokens(said, examples, tokenizer, tmp_path):
    good = layouts.axolotl(said[0], 4)
    [few] = read(tmp_path, {**good, "logprobs": good["logprobs"][-3:]})
    with pytest.raises(DataError, match=rf"log-probabilities for 3 of the {len(said[0].response)} tokens"):
        row(few, examples[0], tokenizer)
    [many] = read(tmp_path, {**good, "logprobs": good["logprobs"][1:] * 3})
    with pytest.raises(DataError, match=rf"rows of log-probabilities for {len(said[0].ids)} tokens"):
        row(many, examples[0], tokenizer)


def test_token_ids_that_begin_with_another_rendering(said, tokenizer, tmp_path):
    from distill.answer_file.given import GivenAnswer

    [answer] = read(tmp_path, layouts.axolotl_prepared(said[0], 4))
    assert isinstance(answer, GivenAnswer)
    with pytest.raises(DataError, match=r"its tokens begin with .*renders the prompt as .*teacher\.tokenizer"):
        row(answer, Example(prompt="Quite another question?"), tokenizer)


def test_token_ids_need_a_tokenizer(said, examples, tmp_path):
    answers = read(tmp_path, layouts.axolotl_prepared(said[0], 4))
    with pytest.raises(DataError, match=r"keeps token ids and no text.*teacher\.tokenizer"):
        match(answers, examples)


def test_targets_that_the_file_does_not_have(said, tmp_path):
    alone, full = layouts.ours(said[0], 4, top=False), layouts.ours(said[1], 4)
    answers = read(tmp_path, alone, full, {"prompt": said[2].prompt, "response": said[2].text})
    with pytest.raises(DataError, match=r"line 3: 1 answers have no log-probabilities.*loss=text"):
        targets_layout(answers, File(kind="file", path="a"), 640)
    with pytest.raises(DataError, match=r"line 1: has the log-probability of each token alone.*targets=next"):
        targets_layout(answers[:2], File(kind="file", path="a", targets="top_k"), 640)
    prepared = read(tmp_path, layouts.axolotl_prepared(said[0], 4))
    with pytest.raises(DataError, match=r"renormalised over the k kept are not those of the text"):
        targets_layout(prepared, File(kind="file", path="a", targets="next"), 640)


def test_answers_that_are_cut_or_too_long_or_not_there(said, examples, tokenizer, tmp_path):
    good = layouts.ours(said[0], 4)
    [answer] = read(tmp_path, good)
    layout = targets_layout([answer], File(kind="file", path="a"), 640)
    length = said[0].prompt_length
    cut = to_row(answer, 0, examples[0], tokenizer, layout, length + 3)
    assert (cut.source, len(cut.input_ids_T), len(cut.targets)) == ("teacher, cut", length + 3, 3)
    assert cut.input_ids_T.tolist() == said[0].ids[: length + 3]
    assert cut.targets.next_S == pytest.approx(
        [said[0].logprobs_TV[t, said[0].ids[t]] for t in range(length, length + 3)]
    )
    long = to_row(answer, 0, examples[0], tokenizer, layout, length)
    none = to_row(None, 0, examples[0], tokenizer, layout, None)
    assert (long.source, none.source) == ("too long", "none")
    assert long.input_ids_T.tolist() == none.input_ids_T.tolist() == said[0].ids[:1]


def test_a_tokenizer_that_leaves_out_the_first_blank(shared_data, tmp_path):
    tokenizer = load_tokenizer(shared_data / "stories260k")
    ids = [*tokenizer("Once upon a time", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    line = {"prompt": "Tell.", "response": " Once upon a time", "tokens": ids}
    [answer] = read(tmp_path, {**line, "logprobs": [entry(token, -1.0) for token in ids]})
    layout = targets_layout([answer], File(kind="file", path="a"), len(tokenizer))
    made = to_row(answer, 0, Example(prompt="Tell."), tokenizer, layout, None)
    assert made.text == " Once upon a time" and made.targets.logprobs_S.tolist() == [-1.0] * len(ids)
