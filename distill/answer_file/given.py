"""GivenAnswer: one answer of a file, whatever layout it was written in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from distill.errors import DataError
from distill.example import Prompt

Values: TypeAlias = Literal["exact", "approximate", "renormalised"]

LARGEST = 1e-3
"""Nats by which rounding may lift a log-probability above zero."""

# T tokens, S positions with targets, K token ids given for the fullest of them


@dataclass(frozen=True)
class GivenAnswer:
    """`where` it stands, in words. `prompt` is None where the layout keeps token ids alone, `text` where it has none.

    `token_ids_T` int32: the response's, or with `whole` the prompt's and the response's. Targets are of the last S of
    these tokens, or, where there are no ids, of the last S of the conversation as the chat template renders it.
    `top_ids_SK` int32, -1 where there is none; `top_logprobs_SK` float32 natural logarithms, -inf there.
    `next_logprobs_S` float32: of the token itself, where the layout says it apart from the others.
    `values`: "exact" log-probabilities, what is missing to one being the tail; "approximate" ones from a fitted curve;
    "renormalised" over the K given, so that nobody knows the tail. `cut`: the file says that the text does not end.
    """

    where: str
    prompt: Prompt | None = None
    text: str | None = None
    token_ids_T: np.ndarray | None = None
    whole: bool = False
    top_ids_SK: np.ndarray | None = None
    top_logprobs_SK: np.ndarray | None = None
    next_logprobs_S: np.ndarray | None = None
    values: Values = "exact"
    cut: bool = False

    @property
    def num_targets(self) -> int:
        """S; 0 for text alone."""
        given = self.top_ids_SK if self.top_ids_SK is not None else self.next_logprobs_S
        return 0 if given is None else len(given)


def padded(ids: Sequence[Any], logprobs: Sequence[Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 `[S, K]` and log-probabilities float32 `[S, K]` of rows of any length; -1 and -inf pad.

    Raises:
        DataError: a row's lengths do not agree, something is no number, or no log-probability.
    """
    if isinstance(ids, np.ndarray) and isinstance(logprobs, np.ndarray) and ids.shape == logprobs.shape:
        return ids.astype(np.int32), logprobs.astype(np.float32)
    width = max((len(row) for row in ids if hasattr(row, "__len__")), default=0)
    ids_SK = np.full((len(ids), width), -1, dtype=np.int32)
    logprobs_SK = np.full((len(ids), width), -np.inf, dtype=np.float32)
    for position, (row_ids, row_logprobs) in enumerate(zip(ids, logprobs, strict=True)):
        if not (hasattr(row_ids, "__len__") and hasattr(row_logprobs, "__len__")):
            raise DataError(f"{where}: position {position} holds something that is no list of numbers.")
        if len(row_ids) != len(row_logprobs):
            raise DataError(
                f"{where}: position {position} has {len(row_ids)} token ids and {len(row_logprobs)} log-probabilities; "
                "there must be one for each."
            )
        try:
            ids_SK[position, : len(row_ids)] = row_ids
            logprobs_SK[position, : len(row_ids)] = row_logprobs
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"{where}: position {position} holds something that is no token id and log-probability "
                f"({list(row_ids)[:2]!s}, {list(row_logprobs)[:2]!s}); both must be numbers."
            ) from None
    return ids_SK, logprobs_SK


def checked(answer: GivenAnswer) -> GivenAnswer:
    """The answer, its numbers looked at.

    Raises:
        DataError: an id given twice at a position, a log-probability that is above zero or not a number.
    """
    for logprobs in (answer.top_logprobs_SK, answer.next_logprobs_S):
        if logprobs is None or not logprobs.size:
            continue
        if np.isnan(logprobs).any():
            raise DataError(f"{answer.where}: a log-probability is not a number (NaN).")
        if answer.values == "exact" and logprobs.max() > LARGEST:
            raise DataError(
                f"{answer.where}: a log-probability is {logprobs.max():.6g}; natural logarithms of probabilities, "
                "at most 0, are needed."
            )
    if answer.top_ids_SK is not None and answer.top_ids_SK.shape[1] > 1:
        ordered_SK = np.sort(answer.top_ids_SK, axis=1)
        twice_S = ((ordered_SK[:, 1:] == ordered_SK[:, :-1]) & (ordered_SK[:, 1:] >= 0)).any(axis=1)
        if twice_S.any():
            raise DataError(
                f"{answer.where}: position {int(twice_S.argmax())} gives a token id twice; each belongs there once."
            )
    return answer


def field_of(row: Mapping[str, Any], field: str, where: str, option: str | None = None) -> Any:
    """The value of a field. Raises DataError when there is none."""
    value = row.get(field)
    if value is None:
        advice = f" Name the right one with teacher.{option}." if option else ""
        raise DataError(f"{where}: no field {field!r}. Fields there: {', '.join(map(str, row))}.{advice}")
    return value


def list_of(row: Mapping[str, Any], field: str, where: str, option: str | None = None) -> Any:
    """The value of a field that holds a list, or an array. Raises DataError when it holds something else."""
    value = field_of(row, field, where, option)
    if not isinstance(value, list | np.ndarray):
        raise DataError(f"{where}: field {field!r} holds {type(value).__name__}; a list, one row a token, is needed.")
    return value


def token_ids(value: Any, field: str, where: str) -> np.ndarray:
    """int32 `[T]`. Raises DataError when the value is no list of token ids."""
    ids = np.asarray(value) if isinstance(value, list | np.ndarray) else np.empty(0)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise DataError(f"{where}: field {field!r} must hold token ids, a list of whole numbers.")
    if ids.max() > np.iinfo(np.int32).max or ids.min() < 0:
        wrong = ids.max() if ids.min() >= 0 else ids.min()
        raise DataError(f"{where}: found token id {wrong} in {field!r}; ids start at 0, and no vocabulary is so large.")
    return ids.astype(np.int32)


def turns_of(row: Mapping[str, Any], field: str, where: str) -> tuple[Mapping[str, str], ...]:
    """Chat messages, role and content alone. Raises DataError when the field holds something else."""
    turns = field_of(row, field, where, "messages_field")
    good = isinstance(turns, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not good or not turns:
        raise DataError(f"{where}: field {field!r} must hold a list of turns with role and content, both text.")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def split_answer(turns: tuple[Mapping[str, str], ...], field: str, where: str) -> tuple[Prompt, str]:
    """The conversation up to its last turn, and what that says. Raises DataError when it is no assistant's."""
    *prompt, answer = turns
    if not prompt or answer["role"] != "assistant":
        raise DataError(
            f"{where}: the last of {len(turns)} turns in {field!r} is {answer['role']!r}; a prompt must come first and "
            "an assistant turn, the answer, last."
        )
    return tuple(prompt), answer["content"]
