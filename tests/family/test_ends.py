"""Base and chat models of a family: where their tokenizers end differently, stand-ins do too, over one vocabulary."""

import pytest

from distill.encoding import template_hash, tokenizer_hash
from distill.family.known import FAMILIES
from distill.rehearsal._sources import source
from distill.rehearsal._tokenizers import tokenizers_for

TEXTS = ["Ada has 7 boxes with 4 pens in each.", "How many pens is that in all?", "7*4=28\n#### 28"] * 4

# Read off the makers' tokenizer_config.json, model cards and issues; see the docstrings of the families.
PAIRS = [
    ("Qwen/Qwen2.5-1.5B", "<|endoftext|>", "Qwen/Qwen2.5-7B-Instruct", "<|im_end|>"),
    ("Qwen/Qwen3-0.6B-Base", "<|endoftext|>", "Qwen/Qwen3-8B", "<|im_end|>"),
    ("meta-llama/Llama-3.1-8B", "<|end_of_text|>", "meta-llama/Llama-3.1-70B-Instruct", "<|eot_id|>"),
    ("meta-llama/Llama-3.2-1B", "<|end_of_text|>", "meta-llama/Llama-3.2-3B-Instruct", "<|eot_id|>"),
    ("google/gemma-3-1b-pt", "<eos>", "google/gemma-3-27b-it", "<eos>"),
    ("meta-llama/Llama-2-7b-hf", "</s>", "meta-llama/Llama-2-70b-chat-hf", "</s>"),
    ("mistralai/Mistral-7B-v0.3", "</s>", "mistralai/Mistral-7B-Instruct-v0.3", "</s>"),
]


@pytest.mark.parametrize(("base", "end", "chat", "chat_end"), PAIRS)
def test_a_base_model_and_its_chat_model_are_told_apart(base, end, chat, chat_end):
    first, second = (
        one.tokenizer for one in tokenizers_for([source("student.model", m, None) for m in (base, chat)], TEXTS)
    )
    assert (first.eos_token, second.eos_token) == (end, chat_end)
    assert first.get_vocab() == second.get_vocab()
    assert (tokenizer_hash(first) == tokenizer_hash(second)) is (end == chat_end)
    # a run that compares distributions refuses each of these pairs, by the end or by the template
    same = (tokenizer_hash(first), template_hash(first)) == (tokenizer_hash(second), template_hash(second))
    assert not same


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_end_is_a_token_of_its_family(family):
    marks = {*family.special_tokens.values(), *family.added_tokens}
    assert {p.eos_token for p in family.published if p.eos_token} <= marks
