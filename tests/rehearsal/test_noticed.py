"""What is likely a mistake is said before the rehearsal, and stops nothing; a recipe as it stands hears nothing."""

import json

import pytest

from distill.encoding import load_tokenizer
from distill.rehearsal.check import check_rehearsal

NOTICED = [
    pytest.param(
        ["recipe=low_resource_news", "training.max_length=64"],
        # 2210 characters of an article at 4 to a token, and the question of the template
        ["training.max_length=64", "about 580 tokens", "left out"],
        id="rows longer than what is learnt of one",
    ),
    pytest.param(
        ["recipe=math_assistant", "teacher.max_new_tokens=16"],
        ["teacher.max_new_tokens=16", "estimated at", "cut,final_answer", "drop"],
        id="answers that the filters would drop",
    ),
    pytest.param(
        ["recipe=math_assistant", "data.eval_split=train"],
        ["data.eval_split=train", "openai/gsm8k", "memorised"],
        id="evaluation on the training split",
    ),
]


@pytest.mark.parametrize(("overrides", "words"), NOTICED)
def test_what_is_likely_a_mistake_is_said_and_stops_nothing(compose, overrides, words):
    (said,) = check_rehearsal(compose(*overrides))
    assert all(word in said for word in words), said


@pytest.mark.parametrize("recipe", ["low_resource_news", "math_assistant", "customer_service_chat", "code_assistant"])
def test_nothing_is_said_against_a_recipe_as_it_stands(compose, recipe):
    assert check_rehearsal(compose(f"recipe={recipe}")) == ()


def test_rows_that_are_all_the_same_are_said(compose, chat_recipe, dialogues):
    """As those of the fixture are: forty numbers, one conversation."""
    # a tenth of them is held out
    (said,) = check_rehearsal(compose(*chat_recipe))
    assert "All 36 training rows are the same prompt with the same answer" in said
    lines = [json.loads(line) for line in dialogues.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["messages"][2]["content"] = f"It is number {number}."
    (dialogues.parent / "others.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert check_rehearsal(compose(*chat_recipe, f"data.path={dialogues.parent / 'others.jsonl'}")) == ()


def _said_of(compose, recipe, model):
    return [words for words in check_rehearsal(compose(*recipe)) if words.startswith(f"{model.name}:")]


def test_a_template_that_ends_no_answer_is_said(compose, chat_recipe, chat_model):
    assert _said_of(compose, chat_recipe, chat_model) == []
    file = chat_model / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{ '<|end|>' }}", "", 1))
    (said,) = _said_of(compose, chat_recipe, chat_model)
    assert "puts nothing after an answer" in said and "'<|end|>'" in said


def test_an_end_in_the_configuration_that_is_not_the_tokenizers_is_said(compose, chat_recipe, chat_model):
    tokenizer = load_tokenizer(chat_model)
    file, other = chat_model / "generation_config.json", tokenizer.convert_tokens_to_ids("<|user|>")
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "eos_token_id": other}))
    (said,) = _said_of(compose, chat_recipe, chat_model)
    assert all(word in said for word in (f"{other} ('<|user|>')", "generation_config.json", "'<|end|>'"))
    file.write_text(json.dumps({**config, "eos_token_id": [other, tokenizer.eos_token_id]}))
    assert _said_of(compose, chat_recipe, chat_model) == []


def test_tokens_without_a_row_that_no_row_uses_are_said(compose, chat_recipe, chat_model):
    tokenizer = load_tokenizer(chat_model)
    num_tokens = len(tokenizer)
    tokenizer.add_tokens(["<|image|>"])
    tokenizer.save_pretrained(chat_model)
    (said,) = _said_of(compose, chat_recipe, chat_model)
    assert f"{num_tokens + 1} tokens, its embedding {num_tokens} rows" in said
