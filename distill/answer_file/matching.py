"""match: which of a file's answers is to which prompt of the data."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distill.answer_file.given import GivenAnswer
from distill.encoding import encode_prompt
from distill.errors import DataError
from distill.example import Example, Prompt, messages_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Matched:
    """`answers`: for each example its answer, or None. `note`: how many found each other, None when all did."""

    answers: list[GivenAnswer | None]
    note: str | None


def match(
    answers: Iterable[GivenAnswer], examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase | None" = None
) -> Matched:
    """The answers joined to the examples by the prompt, exact to the character; a question asked as text or as one chat
    turn is the same question. Where a layout keeps token ids alone, they must begin with the prompt's own.

    Examples with the same prompt get the file's answers to it in order, the last one again when there are too few.
    Plain text, which has no prompt, is joined by the text itself.

    Raises:
        DataError: no answer is to a prompt of the data, or there are token ids and no tokenizer to compare them with.
    """
    wanted = {_key(example.prompt, example.response) for example in examples}
    by_ids: _ByIds | None = None
    found: dict[Hashable, list[GivenAnswer]] = defaultdict(list)
    first: GivenAnswer | None = None
    count = 0
    for answer in answers:
        first = first or answer
        count += 1
        if answer.prompt is not None:
            key = _key(answer.prompt, answer.text)
        else:
            by_ids = by_ids or _ByIds(examples, _needed(tokenizer, answer))
            key = by_ids.key(answer)
        if key in wanted:
            found[key].append(answer)
    if not found and first is not None:
        raise DataError(
            f"{first.where}: none of the {count} answers is to a prompt of the data; they are joined by its text. "
            f"The file's first prompt is {_shown(first, tokenizer)}, the data's {examples[0].prompt!s:.80}."
            # ids alone read as nonsense with a tokenizer that did not make them
            + (" If that is no language, name the tokenizer it was made with: teacher.tokenizer." if by_ids else "")
        )
    used: dict[Hashable, int] = defaultdict(int)
    matched: list[GivenAnswer | None] = []
    for example in examples:
        key = _key(example.prompt, example.response)
        own = found.get(key)
        matched.append(own[min(used[key], len(own) - 1)] if own else None)
        used[key] += 1
    taken = sum(min(used[key], len(own)) for key, own in found.items())
    return Matched(matched, _note(matched, count - taken))


def _note(matched: list[GivenAnswer | None], unused: int) -> str | None:
    without = matched.count(None)
    parts = []
    if without:
        parts.append(f"{without} of {len(matched)} prompts have no answer in the file and are left out")
    if unused:
        parts.append(f"{unused} of the file's answers were not needed: to other prompts, or further ones to the same")
    return "; ".join(parts) + "." if parts else None


def _key(prompt: Prompt, text: str | None) -> Hashable:
    if prompt == "":
        return ("text", text)
    return tuple((turn["role"], turn["content"]) for turn in messages_of(prompt))


class _ByIds:
    """Finds the example whose prompt a row's token ids begin with; the longest prompt, where one begins another."""

    def __init__(self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self.keys: dict[bytes, Hashable] = {}
        self.texts: dict[bytes, Hashable] = {}
        lengths = set()
        for example in examples:
            key = _key(example.prompt, example.response)
            if example.prompt == "":
                self.texts[_bytes(tokenizer(example.response or "", add_special_tokens=False)["input_ids"])] = key
            else:
                ids = encode_prompt(tokenizer, example.prompt)
                self.keys[_bytes(ids)] = key
                lengths.add(len(ids))
        self.lengths = sorted(lengths, reverse=True)

    def key(self, answer: GivenAnswer) -> Hashable:
        ids_T = answer.token_ids_T
        assert ids_T is not None
        for length in self.lengths:
            if length <= len(ids_T) and (key := self.keys.get(_bytes(ids_T[:length]))):
                return key
        return self.texts.get(_bytes(self._inner(ids_T))) if self.texts else None

    def _inner(self, ids_T: np.ndarray) -> np.ndarray:
        """Without the tokens that stand around a text."""
        tokenizer = self.tokenizer
        around = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        inside = np.flatnonzero(~np.isin(ids_T, [one for one in around if one is not None]))
        return ids_T[inside[0] : inside[-1] + 1] if inside.size else ids_T[:0]


def _bytes(ids) -> bytes:
    return np.asarray(ids, dtype=np.int32).tobytes()


def _needed(tokenizer: "PreTrainedTokenizerBase | None", answer: GivenAnswer) -> "PreTrainedTokenizerBase":
    if tokenizer is None:
        raise DataError(
            f"{answer.where}: this layout keeps token ids and no text. Name the tokenizer with teacher.tokenizer."
        )
    return tokenizer


def _shown(answer: GivenAnswer, tokenizer: "PreTrainedTokenizerBase | None") -> str:
    if answer.prompt is not None:
        return f"{answer.prompt!s:.80}"
    assert tokenizer is not None and answer.token_ids_T is not None
    return f"{tokenizer.decode(answer.token_ids_T[:40].tolist())!s:.80}"
