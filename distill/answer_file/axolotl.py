"""Axolotl's data sets for its KD plugin: chat messages, and for each token the teacher's top log-probabilities.

`{"messages": [...], "logprobs": [[{"token": "token_id:9", "logprob": -0.1}, …], …]}`, or the numbers alone with the ids
beside them in `target_token_ids`. The rows are of the last tokens of the conversation as the chat template renders it,
row by row for the token itself, not for the one after it. Positions that were not scored hold null or nothing.

Source: axolotl-ai-cloud/axolotl, src/axolotl/integrations/kd/README.md and chat_template.py (its class
ChatTemplateStrategyWithKD for the first form, …v2 for the second). These are the engine's own log-probabilities;
Axolotl renormalises them over the k only when it prepares them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from distill.answer_file.given import GivenAnswer, list_of, padded, split_answer, turns_of
from distill.errors import DataError
from distill.teacher.file import File

PREFIX = "token_id:"


def reader(teacher: File) -> Callable[[Mapping[str, Any], str], GivenAnswer]:
    """Turns a row of this layout into an answer."""

    def read(row: Mapping[str, Any], where: str) -> GivenAnswer:
        prompt, text = split_answer(turns_of(row, teacher.messages_field, where), teacher.messages_field, where)
        rows = list_of(row, teacher.logprobs_field, where, "logprobs_field")
        ids, logprobs = (
            _entries(rows, where)
            if row.get("target_token_ids") is None
            else _beside(list_of(row, "target_token_ids", where), rows, where)
        )
        first = next((number for number, entries in enumerate(ids) if len(entries)), len(ids))
        ids_SK, logprobs_SK = padded(ids[first:], logprobs[first:], where)
        if not ids_SK.size:
            raise DataError(f"{where}: no row of {teacher.logprobs_field!r} holds a log-probability.")
        return GivenAnswer(where, prompt, text, top_ids_SK=ids_SK, top_logprobs_SK=logprobs_SK)

    return read


def is_entries(rows: Any) -> bool:
    """Whether a field's value is of the first form."""
    if not isinstance(rows, list):
        return False
    entry = next((row[0] for row in rows if isinstance(row, list) and row), None)
    return isinstance(entry, dict) and str(entry.get("token")).startswith(PREFIX)


def _entries(rows: Any, where: str) -> tuple[list[list[int]], list[list[float]]]:
    try:
        ids = [[int(entry["token"].removeprefix(PREFIX)) for entry in row or []] for row in rows]
        return ids, [[entry["logprob"] for entry in row or []] for row in rows]
    except (TypeError, KeyError, ValueError, AttributeError):
        raise DataError(
            f'{where}: log-probabilities must be lists of {{"token": "{PREFIX}…", "logprob": …}}, one for each token.'
        ) from None


def _beside(ids: Any, logprobs: Any, where: str) -> tuple[list[Any], list[Any]]:
    if len(ids) != len(logprobs):
        raise DataError(f"{where}: {len(ids)} rows of target_token_ids, but {len(logprobs)} of log-probabilities.")
    return [[] if row is None else row for row in ids], [[] if row is None else row for row in logprobs]
