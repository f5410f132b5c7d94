"""Our own layout, and plain text: what a short script can write from any API's answers.

    {"prompt": "2 + 2?", "response": "4", "tokens": [19, 2],
     "logprobs": [{"id": 19, "logprob": -0.1, "top": [[19, -0.1], [23, -3.2]]}, {"id": 2, "logprob": -0.01, "top": …}]}

`messages` may take the prompt's place. `tokens` and `logprobs` may be missing, and `finish_reason`, as APIs give it,
whose "length" says of an answer without tokens that it was cut. `tokens` are the response's own, with
the end-of-sequence token when the answer ended by itself. `top` may be missing, and need not hold the token itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distill.answer_file.given import GivenAnswer, field_of, padded, split_answer, token_ids, turns_of
from distill.errors import DataError
from distill.example import Prompt
from distill.teacher.file import File


def reader(teacher: File) -> Callable[[Mapping[str, Any], str], GivenAnswer]:
    """Turns a row of this layout into an answer."""

    def read(row: Mapping[str, Any], where: str) -> GivenAnswer:
        prompt, text = _prompt_and_text(row, teacher, where)
        tokens, logprobs = row.get("tokens"), row.get(teacher.logprobs_field)
        if tokens is None and logprobs is None:
            return GivenAnswer(where, prompt, text, cut=row.get("finish_reason") == "length")
        ids_T = None if tokens is None else token_ids(tokens, "tokens", where)
        if logprobs is None:
            return GivenAnswer(where, prompt, text, ids_T)
        return _with_logprobs(GivenAnswer(where, prompt, text, ids_T), logprobs, teacher.logprobs_field)

    return read


def _prompt_and_text(row: Mapping[str, Any], teacher: File, where: str) -> tuple[Prompt, str]:
    if row.get(teacher.messages_field) is not None:
        prompt: Prompt = turns_of(row, teacher.messages_field, where)
        if row.get(teacher.response_field) is None:
            return split_answer(prompt, teacher.messages_field, where)
    else:
        prompt = field_of(row, teacher.prompt_field, where, "prompt_field")
    response = field_of(row, teacher.response_field, where, "response_field")
    for field, value in ((teacher.prompt_field, prompt), (teacher.response_field, response)):
        if not isinstance(value, str | int | float | tuple):
            raise DataError(f"{where}: field {field!r} holds {type(value).__name__}; text is needed.")
    if str(response) == "":
        raise DataError(f"{where}: the response is empty. Leave such rows out of the file.")
    return prompt if isinstance(prompt, tuple) else str(prompt), str(response)


def _with_logprobs(answer: GivenAnswer, logprobs: Any, field: str) -> GivenAnswer:
    where = answer.where
    needed = 'a list of {"id": …, "logprob": …, "top": [[id, logprob], …]}, one for each token'
    if not isinstance(logprobs, list) or not logprobs:
        raise DataError(f"{where}: field {field!r} holds {type(logprobs).__name__}; needed {needed}.")
    try:
        ids = token_ids([entry["id"] for entry in logprobs], field, where)
        next_S = np.array([entry["logprob"] for entry in logprobs], dtype=np.float32)
        tops = [entry.get("top") or [] for entry in logprobs]
        top_ids, top_logprobs = [[pair[0] for pair in top] for top in tops], [[pair[1] for pair in top] for top in tops]
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        raise DataError(f"{where}: an entry of {field!r} is not as it must be; needed {needed}.") from None
    if answer.token_ids_T is not None:
        if len(ids) != len(answer.token_ids_T):
            raise DataError(
                f"{where}: {len(answer.token_ids_T)} tokens but {len(ids)} log-probabilities; each needs its own."
            )
        if (ids != answer.token_ids_T).any():
            position = int((ids != answer.token_ids_T).argmax())
            raise DataError(
                f"{where}: token {position} is {answer.token_ids_T[position]}, but its log-probability is of "
                f"{ids[position]}."
            )
    ids_SK, logprobs_SK = padded(top_ids, top_logprobs, where)
    has_top = ids_SK.shape[1] > 0
    return GivenAnswer(
        where,
        answer.prompt,
        answer.text,
        ids,
        top_ids_SK=ids_SK if has_top else None,
        top_logprobs_SK=logprobs_SK if has_top else None,
        next_logprobs_S=next_S,
    )
