"""A checkpoint and a data set of a user's own, small and right, into which mistakes are planted."""

import json
import shutil

import pytest

from distill import _hydra
from distill.recipe import parse
from distill.rehearsal.check import check_rehearsal
from distill.rehearsal.run import rehearse

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture
def chat_model(tiny_teacher, tmp_path):
    """A folder with config, weights, tokenizer and a chat template that says every turn."""
    folder = tmp_path / "chat_model"
    shutil.copytree(tiny_teacher, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def dialogues(tmp_path):
    """Conversations of two turns each, the last one the agent's."""
    turns = [
        {"role": "user", "content": "My parcel is late."},
        {"role": "assistant", "content": "I am sorry. What is its number?"},
        {"role": "user", "content": "It is number 12."},
        {"role": "assistant", "content": "It comes on Friday."},
    ]
    file = tmp_path / "dialogues.jsonl"
    file.write_text("".join(json.dumps({"messages": turns, "number": n}) + "\n" for n in range(40)))
    return file


@pytest.fixture
def chat_recipe(chat_model, dialogues):
    """Overrides of a recipe for these, which passes."""
    return [
        *("recipe=customer_service", "data=local", f"data.path={dialogues}", "data.messages_field=messages"),
        *("data.rows=null", "data.labelled_rows=null", f"teacher.model={chat_model}", "student=pretrained"),
        *(f"student.model={chat_model}", "baselines=[]", "compression=[bf16]", "hardware=null"),
        *("training.warmup_steps=2", "training.max_length=160"),
    ]


@pytest.fixture
def compose():
    """Overrides → the recipe of a rehearsal."""
    return lambda *overrides: parse(_hydra.compose([*overrides, "rehearse=true"]).config)


@pytest.fixture
def rehearse_here(compose, tmp_path):
    """Rehearses a recipe in this process, as the command does, and returns the run folder."""

    def run(*overrides):
        recipe = compose(*overrides)
        check_rehearsal(recipe)
        folder = tmp_path / "run"
        folder.mkdir()
        rehearse(recipe, folder)
        return folder

    return run
