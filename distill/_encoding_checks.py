"""What can be refused of how tokenizers encode the data's rows, and would else spoil what a student learns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.alignment import common_length
from distill.encoding import encode_prompt, encode_response, load_tokenizer
from distill.errors import RecipeError
from distill.example import Example, Examples, messages_of
from distill.family.known import published
from distill.family.text_part import text_part

NUM_PROBED = 64
"""Rows whose rendering is looked at; a template that drops turns drops them everywhere."""
ANSWER = "The answer to that."
"""Stands for any, where it matters what a template puts around one."""
CHECKED_ROLES = frozenset({"system", "user", "assistant"})
"""A template may word tools by rules of its own."""


def check_templates(examples: Examples, sides: list[tuple[str, str | None]]) -> None:
    """Whether these checkpoints' tokenizers and chat templates say all of the data's rows, and their models know them.

    Raises:
        RecipeError: a template refuses the turns, leaves out what somebody said in them, or does not let the assistant
            begin; or a row has tokens that the embedding has no row for.
    """
    train, evaluation = examples.train, examples.evaluation["exact_match"]
    rows = [*train[:NUM_PROBED], *evaluation[:NUM_PROBED], *_one_of_each_order([*train, *evaluation])]
    for model, revision in sides:
        tokenizer = load_tokenizer(model, revision)
        name = Path(model).name if Path(model).is_dir() else model
        if tokenizer.chat_template:
            for row in rows:
                _says_every_turn(name, tokenizer, row)
            _lets_the_assistant_begin(name, tokenizer)
        _tokens_have_rows(name, tokenizer, num_embeddings(model), rows)


def _one_of_each_order(rows: Sequence[Example]) -> list[Example]:
    """The first row with each order of speakers: many templates refuse some, and one row in thousands may have it."""
    first: dict[tuple[str, ...], Example] = {}
    for row in rows:
        if not isinstance(row.prompt, str):
            first.setdefault(tuple(turn["role"] for turn in row.prompt), row)
    return list(first.values())


def num_embeddings(model: str) -> int | None:
    """Rows of the embedding by config.json, or by what we know of a checkpoint on the hub; else None."""
    file = Path(model) / "config.json"
    if file.is_file():
        return text_part(json.loads(file.read_text("utf-8"))).get("vocab_size")
    known = None if Path(model).is_dir() else published(model)
    return known[1].config["vocab_size"] if known else None


def around_an_answer(tokenizer: Any) -> tuple[str, str] | None:
    """What a chat template puts before an answer and not at the end of its prompt, and what it puts after it.

    Both without the blanks around them; None where the template takes no such conversation, or changes the answer.
    """
    from jinja2 import TemplateError

    prompt: list[dict[str, str]] = [{"role": "user", "content": "A question."}]
    try:
        begins = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        open_ended = tokenizer.apply_chat_template(prompt, tokenize=False)
        whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": ANSWER}], tokenize=False)
    except TemplateError:
        return None
    before, found, after = whole.rpartition(ANSWER)
    if not found:
        return None
    # a prompt that was told to end with the assistant's mark, and changed, has one: what else stands there is a style
    missing = "" if begins != open_ended else before[common_length(before, begins) :]
    return missing.strip(), after.strip()


def _says_every_turn(name: str, tokenizer: Any, row: Example) -> None:
    from jinja2 import TemplateError

    if row.prompt == "":
        return
    turns = messages_of(row.prompt)
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise RecipeError(
            f"The chat template of {name} refuses a conversation of the data ({roles}): {error}. Change the data's "
            "turns, or choose a checkpoint whose template takes them."
        ) from None
    for turn in turns:
        said = turn["content"].strip()
        # a template may take an earlier turn's reasoning out on purpose
        if turn["role"] in CHECKED_ROLES and "<think>" not in said and said not in text:
            raise RecipeError(
                f"The chat template of {name} leaves out what the {turn['role']} said: {said[:60]!r} is not in what it "
                "makes of the conversation, so a student would never see it. Use a checkpoint with a whole template, "
                "or mend its chat_template.jinja."
            )


def _lets_the_assistant_begin(name: str, tokenizer: Any) -> None:
    around = around_an_answer(tokenizer)
    if around and around[0]:
        raise RecipeError(
            f"The chat template of {name} has no generation prompt: before an answer it writes {around[0][:60]!r}, and "
            "a prompt that asks for one (add_generation_prompt) ends without it, so the teacher would go on as the "
            "user and a student would learn that.\n"
            "Mend chat_template.jinja in a folder of your own: {% if add_generation_prompt %} … {% endif %} at its end."
        )


def _tokens_have_rows(name: str, tokenizer: Any, num_rows: int | None, rows: list[Example]) -> None:
    if num_rows is None or len(tokenizer) <= num_rows:
        return
    for row in rows:
        beyond = [n for n in encode_prompt(tokenizer, row.prompt) if n >= num_rows]
        beyond += [n for n in encode_response(tokenizer, row.response or "") if n >= num_rows]
        if beyond:
            token = tokenizer.convert_ids_to_tokens(beyond[0])
            raise RecipeError(
                f"{name}: its tokenizer has {len(tokenizer):,} tokens, its embedding {num_rows:,} rows (vocab_size in "
                f"config.json), and the data's rows use token {beyond[0]:,} ({token!r}): the model would stop there.\n"
                "Use the tokenizer that belongs to these weights, or resize the embedding to this one "
                "(model.resize_token_embeddings) and save it."
            )
