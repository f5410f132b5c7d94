"""Templates are tried on the rows that they may refuse, wherever these stand."""

import pytest

from distill._encoding_checks import NUM_PROBED, check_templates
from distill.encoding import train_tokenizer
from distill.errors import RecipeError
from distill.example import Example, Examples

ALTERNATES = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ message['content'] }}{% endfor %}"
)
"""As Mistral's and Gemma's do."""


@pytest.mark.parametrize("part", ["train", "evaluation"])
def test_one_row_in_many_that_a_template_refuses_is_found_before_anybody_is_asked(tmp_path, part):
    tokenizer = train_tokenizer(["a b c"], 300)
    tokenizer.chat_template = ALTERNATES
    tokenizer.save_pretrained(tmp_path)
    turns = tuple({"role": "user", "content": text} for text in ("Where is it?", "Hello?"))
    rows = {name: [Example(prompt=turns[:1], response="here")] * 2 * NUM_PROBED for name in ("train", "evaluation")}

    def check():
        check_templates(Examples(rows["train"], {"exact_match": rows["evaluation"]}), [(str(tmp_path), None)])

    check()
    rows[part].append(Example(prompt=turns, response="here"))
    with pytest.raises(RecipeError, match=r"\(user, user\): roles must alternate"):
        check()
