"""What is typed becomes the prompt that data makes of a row; a dialogue is whole, and says what it had to leave out."""

import json

import pytest

from distill._chat_dialogue import Dialogue, Lines, keeps_dialogue
from distill._hydra import compose
from distill.encoding import encode_prompt
from distill.errors import DataError, RecipeError
from distill.recipe import parse
from distill.runtime.hf import Transformers
from distill.runtime.speaking import Sampling, TransformersSpeaker
from tests.conftest import ROOT

TEACHER = ROOT / "distill" / "bundled" / "quickstart_teacher"
QUESTION = "Ivan has 4 bags with 2 cookies in each and 7 loose cookies. How many cookies is that in all?"
ANSWER = "4*2=8\n8+7=15\n#### 15"
TEXT = ["data=local", "data.path=x.jsonl", "data.text_field=text", "teacher.responses=data", "evaluation=bits_per_byte"]


def recipe_of(*typed: str):
    return parse(compose(["recipe=quickstart", *typed]).config)


@pytest.mark.parametrize(
    ("typed", "row", "line"),
    [
        ([], {"prompt": "7 + 5?"}, "7 + 5?"),
        ([], {"prompt": "two\nlines"}, '{"prompt": "two\\nlines", "response": "x"}'),
        (["data.prompt_field=text"], {"text": "{not json"}, "{not json"),
        (["data.prompt_template='Which intent?\n{text}'"], {"text": "card?"}, "card?"),
        (
            ["data.prompt_template='{instruction}\n\n{context}'"],
            {"instruction": "Add.", "context": ""},
            '{"instruction": "Add.", "context": ""}',
        ),
        (["data.messages_field=turns"], {"turns": [{"role": "user", "content": "hi"}]}, "hi"),
        (
            ["data.messages_field=d", "data.speaker_field=who", "data.content_field=says", "data.agent=clerk"],
            {"d": [{"who": "customer", "says": "hi"}]},
            "hi",
        ),
        (
            ["data.messages_field=d"],
            {"d": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]},
            '{"d": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]}',
        ),
    ],
)
def test_a_line_becomes_the_prompt_of_a_row_with_that_text(typed, row, line, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    recipe = recipe_of("data=local", f"data.path={file}", f"data.eval_path={file}", *typed)
    (example,) = recipe.data.load().evaluation["exact_match"]
    assert Lines(recipe).prompt(line, "here") == example.prompt


def test_text_is_gone_on_with():
    lines = Lines(recipe_of(*TEXT))
    assert lines.is_text and lines.prompt("Once upon", "here") == "Once upon"


def test_several_fields_are_asked_for_by_name():
    lines = Lines(recipe_of("data=local", "data.path=x.jsonl", "data.prompt_template='{a} {b}'"))
    with pytest.raises(DataError, match=r'line 3: .*a and b.*\{"a": "…", "b": "…"\}'):
        lines.prompt("only one", "line 3")
    with pytest.raises(DataError, match="a and b"):
        lines.prompt('{"a": "x"}', "line 3")


@pytest.mark.parametrize(
    ("typed", "line", "words"),
    [
        ([], '{"question": "7 + 5?"}', "line 3: no field 'prompt'. Fields there: question."),
        ([], '{"prompt": null}', "line 3: field 'prompt' is null, text is needed."),
        (TEXT, '{"prompt": "a"}', "no field 'text'"),
        (["data=local", "data.path=x.jsonl", "data.prompt_template='{a}'"], '{"b": "x"}', "Fields there: b"),
        (["data=local", "data.path=x.jsonl", "data.messages_field=turns"], '{"b": "x"}', "Fields there: b"),
        ([], '{"prompt": ' + "[" * 100_000, "line 3: its brackets are nested too deep to be read."),
    ],
)
def test_a_row_without_its_text_is_refused_and_never_asked_as_text(typed, line, words):
    with pytest.raises(DataError) as refused:
        Lines(recipe_of(*typed)).prompt(line, "line 3")
    assert words in str(refused.value)


def test_without_a_recipe_there_are_no_rows_to_be_wrong():
    assert Lines(None).prompt('{"question": "7 + 5?"}', "here") == '{"question": "7 + 5?"}'


@pytest.fixture(scope="module")
def speaker():
    opened = TransformersSpeaker(Transformers(TEACHER, device="cpu"))
    yield opened
    opened.close()


@pytest.fixture
def lines():
    return Lines(None)


def shown(dialogue: Dialogue, prompt: str):
    pieces: list[str] = []
    said = dialogue.ask(prompt, pieces.append)
    assert "".join(pieces) == said.text
    return said


def test_a_question_by_itself_is_the_evaluations(speaker, lines):
    dialogue = Dialogue("teacher", speaker, Sampling(64), lines)
    for _ in range(2):
        said = shown(dialogue, QUESTION)
        assert (said.text, said.cut, said.notes, said.interrupted) == (ANSWER, "", [], False)
        # its tokens without the one that ends it
        assert said.num_tokens == len(speaker.model.tokenize([ANSWER])[0]) and said.tokens_per_second > 0


class Recorded(TransformersSpeaker):
    """The real speaker, which remembers what it was asked."""

    def answer(self, prompt, sampling, seen):
        self.asked = list(prompt)
        return super().answer(prompt, sampling, seen)


def test_a_dialogue_is_whole_until_its_room_is_full_and_then_says_so(speaker, lines):
    recorded = Recorded(speaker.model)
    dialogue = Dialogue("teacher", recorded, Sampling(64), lines, system="Be brief.", keeps=True)
    system = {"role": "system", "content": "Be brief."}
    first = shown(dialogue, "one")
    second = shown(dialogue, "two")
    turns = [("user", "one"), ("assistant", first.text), ("user", "two")]
    whole = (system, *({"role": role, "content": text} for role, text in turns))
    assert recorded.asked == encode_prompt(speaker.model.tokenizer, whole) and second.notes == []
    notes = []
    while not notes:
        notes = shown(dialogue, QUESTION).notes
    assert notes[0].startswith("teacher has room for 192 tokens: the oldest") and notes[0].endswith("dropped")
    assert len(recorded.asked) + 64 <= 192
    text = speaker.model.tokenizer.decode(recorded.asked)
    assert text.startswith("<|system|>Be brief.<|user|>") and text.endswith(f"<|user|>{QUESTION}<|assistant|>")
    dialogue.exchanges.clear()
    shown(dialogue, "one")
    assert recorded.asked == encode_prompt(speaker.model.tokenizer, whole[:2])


def test_an_answer_that_was_stopped_keeps_what_was_seen(speaker, lines):
    dialogue = Dialogue("teacher", speaker, Sampling(64), lines, keeps=True)

    def stop(text: str) -> None:
        if "=" in text:
            raise KeyboardInterrupt

    said = dialogue.ask(QUESTION, stop)
    assert said.interrupted and said.text == "4*2="
    assert dialogue.exchanges == [
        ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": "4*2="}),
    ]


def test_what_cuts_an_answer_is_said(speaker, lines):
    said = shown(Dialogue("teacher", speaker, Sampling(3), lines), QUESTION)
    assert (said.text, said.num_tokens, said.cut) == ("4*2", 3, "--max-new-tokens")
    # digits are single tokens, so 180 of them and the template's two leave room for 10
    digits = "7" * 180
    assert len(speaker.encode(digits)) == 182
    said = shown(Dialogue("teacher", speaker, Sampling(10_000), lines), digits)
    assert said.cut == "its room for 192 tokens is full" and said.num_tokens == 10
    with pytest.raises(DataError, match="room for 192 tokens, and this prompt alone has 192"):
        shown(Dialogue("teacher", speaker, Sampling(5), lines), "7" * 190)


def test_each_answer_of_a_dialogue_is_another_draw_and_can_be_repeated(speaker, lines):
    drawn = []
    for _ in range(2):
        dialogue = Dialogue("teacher", speaker, Sampling(16, temperature=3.0, seed=5), lines)
        drawn.append([shown(dialogue, QUESTION).text for _ in range(2)])
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]


class Scripted:
    """A speaker that says its (seconds since the start, text, tokens so far) by the clock."""

    has_template, max_positions = True, None

    def __init__(self, *events: tuple[float, str, int]):
        self.events, self.seeds, self.now = events, [], 0.0

    def encode(self, prompt):
        return [0]

    def answer(self, prompt, sampling, seen):
        self.seeds.append(sampling.seed)
        for now, text, num_tokens in self.events:
            self.now = now
            seen(text, num_tokens)
        return False


@pytest.mark.parametrize(
    ("events", "rate"),
    [
        ([(5.0, "a", 4), (5.1, "b", 5)], 10),  # one token in a tenth of a second; the first four came before it began
        ([(5.0, "a", 1), (5.5, "b", 2), (6.0, "c", 3)], 2),
        ([(5.0, "a", 4)], None),
    ],
)
def test_the_speed_is_of_the_tokens_after_the_first_ones(events, rate, lines, monkeypatch):
    speaker = Scripted(*events)
    monkeypatch.setattr("distill._chat_dialogue.time.perf_counter", lambda: speaker.now)
    said = Dialogue("scripted", speaker, Sampling(8), lines).ask("hi", lambda text: None)
    assert said.num_tokens == events[-1][2]
    assert said.tokens_per_second == (rate if rate is None else pytest.approx(rate))


def test_no_answer_is_drawn_with_the_seed_that_is_none(lines):
    speaker = Scripted((0.0, "a", 1))
    dialogue = Dialogue("scripted", speaker, Sampling(8, 1.0, seed=4294967294), lines)
    for _ in range(3):
        dialogue.ask("hi", lambda text: None)
    assert speaker.seeds == [4294967294, 0, 1]


def test_without_a_template_there_is_no_dialogue(speaker, lines, tmp_path):
    import shutil

    shutil.copytree(TEACHER, tmp_path / "base", ignore=shutil.ignore_patterns("chat_template*"))
    base = TransformersSpeaker(Transformers(tmp_path / "base", device="cpu"))
    assert not keeps_dialogue(None, lines, base) and keeps_dialogue(None, lines, speaker)
    for how in ({"system": "Be brief."}, {"keeps": True}):
        with pytest.raises(RecipeError, match="base has no chat template"):
            Dialogue("base", base, Sampling(4), lines, **how)
    # rows of dialogues are written out without one: their speakers by name
    chats = recipe_of("data=local", "data.path=x.jsonl", "data.messages_field=turns")
    assert keeps_dialogue(chats, Lines(chats), base)
    prompt = Lines(chats).prompt("hi", "here")
    assert base.model.tokenizer.decode(base.encode(prompt)) == "user: hi\nassistant:\n"
    base.close()


def test_who_was_taught_single_questions_is_asked_single_questions(speaker):
    student = recipe_of()
    assert student.student.kind == "scratch" and not keeps_dialogue(student, Lines(student), speaker)
    pretrained = recipe_of("student=pretrained", f"student.model={TEACHER}")
    assert keeps_dialogue(pretrained, Lines(pretrained), speaker)
