"""to_row: an answer as a row of the store, its token ids and targets one beside the other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from distill._shards import CUT, Row
from distill.answer_file.given import GivenAnswer
from distill.answer_file.top_k import next_logprobs, top_k_targets
from distill.encoding import decode_response, encode_prompt, encode_response
from distill.errors import DataError
from distill.example import Example, messages_of
from distill.stages.teach import ROOM_FOR_ANSWER
from distill.targets import Layout, RowTargets
from distill.targets.next_token import NextTokenTargets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENOUGH_POSITIONS = 8
"""Positions from which on a shift by one cannot be chance."""

# T tokens of a row, S positions with targets


def to_row(
    answer: GivenAnswer | None,
    number: int,
    example: Example,
    tokenizer: "PreTrainedTokenizerBase | None",
    layout: Layout | None,
    context: int | None,
    *,
    prompt_targets: bool = False,
) -> Row:
    """The row of `example`: text alone without a tokenizer, with token ids by it, with targets where there is a layout.

    Targets are kept at the response's positions, or with `prompt_targets` at all. `source` is "teacher", "teacher, cut"
    where the file says so, the token ids do not end with the end-of-sequence token or the context ends before, "too
    long" for a prompt that leaves no room, "none" without an answer.

    Raises:
        DataError: the answer's tokens, text and log-probabilities do not fit each other, the prompt or the tokenizer.
    """
    if tokenizer is None:
        assert layout is None
        source = "none" if answer is None else CUT if answer.cut else "teacher"
        return Row(number, (answer.text or "") if answer else "", source)
    prompt = encode_prompt(tokenizer, example.prompt)
    if answer is None or (context is not None and len(prompt) + ROOM_FOR_ANSWER > context):
        source = "none" if answer is None else "too long"
        return Row(number, "", source, np.array(prompt[:1], dtype=np.int32), 1)
    tokens = _tokens(answer, example, prompt, tokenizer)
    _check_ids(answer, tokens.ids_T, layout.vocab_size if layout else len(tokenizer))
    text = _text(answer, tokens, tokenizer)
    ids_T = tokens.ids_T[:context]
    ended = ids_T[-1] == tokenizer.eos_token_id
    targets = None
    if layout is not None:
        dropped = tokens.after + len(tokens.ids_T) - len(ids_T)
        first = 1 if prompt_targets else tokens.prompt_length
        targets = _targets(answer, ids_T, first, dropped, layout)
    return Row(number, text, "teacher" if ended else CUT, ids_T, tokens.prompt_length, targets)


@dataclass(frozen=True)
class _Tokens:
    """A row's token ids; `after` counts those that the file has after the answer's end, with targets of their own."""

    ids_T: np.ndarray
    prompt_length: int
    after: int = 0


def _tokens(answer: GivenAnswer, example: Example, prompt: list[int], tokenizer: "PreTrainedTokenizerBase") -> _Tokens:
    if answer.token_ids_T is not None and not answer.whole:
        return _Tokens(np.concatenate([np.array(prompt, dtype=np.int32), answer.token_ids_T]), len(prompt))
    if answer.token_ids_T is not None:
        ids_T = answer.token_ids_T
    elif answer.num_targets:
        ids_T = _conversation(answer, tokenizer)
    else:
        response = encode_response(tokenizer, answer.text or "")[: -1 if answer.cut else None]
        return _Tokens(np.array(prompt + response, dtype=np.int32), len(prompt))
    start = len(prompt)
    if example.prompt == "":
        start = 1  # plain text: whatever stands first is what the first target comes after
    elif len(ids_T) <= start or ids_T[:start].tolist() != prompt:
        raise DataError(
            f"{answer.where}: its tokens begin with {tokenizer.decode(ids_T[:start].tolist())!s:.60}, this tokenizer "
            f"renders the prompt as {tokenizer.decode(prompt)!s:.60}. Name the tokenizer (with the chat template) that "
            "the file was made with: teacher.tokenizer."
        )
    return _Tokens(ids_T[: _end(ids_T, start, tokenizer)], start, len(ids_T) - _end(ids_T, start, tokenizer))


def _end(ids_T: np.ndarray, start: int, tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many tokens there are up to the first end of sequence in the response; without one, up to the padding."""
    ends = np.flatnonzero(ids_T[start:] == tokenizer.eos_token_id)
    if ends.size:
        return start + int(ends[0]) + 1
    real = np.flatnonzero(ids_T != tokenizer.pad_token_id)
    return max(start, int(real[-1]) + 1) if real.size else start


def _conversation(answer: GivenAnswer, tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """The prompt and the answer as the chat template renders them, with all that comes after the answer."""
    assert answer.prompt is not None and answer.text is not None
    if not tokenizer.chat_template:
        ids = encode_prompt(tokenizer, answer.prompt) + encode_response(tokenizer, answer.text)
        return np.array(ids, dtype=np.int32)
    turns = [*messages_of(answer.prompt), {"role": "assistant", "content": answer.text}]
    text = cast(str, tokenizer.apply_chat_template(turns, tokenize=False))
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def _check_ids(answer: GivenAnswer, ids_T: np.ndarray, vocab_size: int) -> None:
    for what, ids in (("token", ids_T), ("log-probability of token", answer.top_ids_SK)):
        if ids is not None and ids.size and ids.max() >= vocab_size:
            raise DataError(
                f"{answer.where}: found a {what} {ids.max()}, but the tokenizer has {vocab_size} tokens. "
                "Name the one that the file was made with: teacher.tokenizer."
            )


def _text(answer: GivenAnswer, tokens: _Tokens, tokenizer: "PreTrainedTokenizerBase") -> str:
    first = 0 if tokens.prompt_length == 1 and answer.prompt is None else tokens.prompt_length
    decoded = decode_response(tokenizer, tokens.ids_T[first:].tolist())
    if answer.text is None:
        return decoded
    # tokenizers differ in the blank before a first word, which APIs send along or leave out
    if answer.token_ids_T is not None and decoded.strip() != answer.text.strip():
        raise DataError(
            f"{answer.where}: its tokens read {decoded!r:.80}, its text is {answer.text!r:.80}. "
            "Name the tokenizer that the file was made with: teacher.tokenizer."
        )
    return answer.text


def _targets(answer: GivenAnswer, ids_T: np.ndarray, first: int, dropped: int, layout: Layout) -> RowTargets:
    """The targets of tokens `first` and after, which are the last ones, as both the file and the row have them."""
    where, S = answer.where, len(ids_T) - first
    available = answer.num_targets - dropped
    if available < S:
        raise DataError(
            f"{where}: log-probabilities for {max(available, 0)} of the {S} tokens that are to be learnt. "
            "Another tokenizer or chat template than teacher.tokenizer made them, or some are missing."
        )
    if available > len(ids_T):
        raise DataError(
            f"{where}: {available} rows of log-probabilities for {len(ids_T)} tokens. "
            "Another tokenizer or chat template than teacher.tokenizer made them."
        )
    rows = slice(available - S, available)
    top_ids, top_logprobs, own = (
        None if given is None else given[rows]
        for given in (answer.top_ids_SK, answer.top_logprobs_SK, answer.next_logprobs_S)
    )
    next_ids_S = ids_T[first:]
    if top_ids is not None:
        _check_shift(top_ids, next_ids_S, where)
    if layout.kind == "next":
        return NextTokenTargets(next_logprobs(top_ids, top_logprobs, next_ids_S, own, where))
    assert layout.kind == "top_k" and top_ids is not None and top_logprobs is not None
    return top_k_targets(top_ids, top_logprobs, next_ids_S, own, layout, answer.values, where)


def _check_shift(top_ids_SK: np.ndarray, next_ids_S: np.ndarray, where: str) -> None:
    """Raises DataError when the rows fit the tokens before or after much better than their own.

    A likely token is among the top ones, whoever wrote it; where a row's own is not and a neighbour's is, all along,
    the rows are off by one.
    """
    if len(next_ids_S) < ENOUGH_POSITIONS:
        return

    def share(rows: np.ndarray, tokens: np.ndarray) -> float:
        return float((rows == tokens[:, None]).any(axis=1).mean())

    own = share(top_ids_SK, next_ids_S)
    before, after = share(top_ids_SK[1:], next_ids_S[:-1]), share(top_ids_SK[:-1], next_ids_S[1:])
    if own < 0.5 and max(before, after) >= 0.9:
        which, other = ("before", before) if before > after else ("after", after)
        raise DataError(
            f"{where}: the log-probabilities are one position off: {own:.0%} of the tokens are among their own row's, "
            f"{other:.0%} of those one {which}. Files of Axolotl 0.18.0 and older need "
            "teacher.layout=axolotl_prepared_legacy; otherwise another tokenizer or chat template made them."
        )
