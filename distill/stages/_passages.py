"""passages(): the stretches of text on which every model of a run says how likely each token is."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distill.encoding import encode_prompt, encode_response, template_hash, tokenizer_hash
from distill.example import Example
from distill.windows import fitting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def passages(
    rows: Sequence[Example], tokenizers: Sequence["PreTrainedTokenizerBase"], *, max_length: int, positions: int
) -> list[Example]:
    """Prompts, each with as much of its answer as is scored: the same characters for every model.

    Tokenizers make different tokens of a text, and so many tokens of one are not the same stretch as so many of
    another; bits per byte of different stretches say nothing of who predicts better. So each passage fits into
    `max_length` tokens, its prompt included, by every tokenizer, and all together into `positions` by every one.
    What is left of a long plain text is a further passage, after each row has had its first.
    """
    distinct = list({(tokenizer_hash(one), template_hash(one)): one for one in tokenizers}.values())
    left, found = [positions] * len(distinct), []
    waiting = deque((row, 0) for row in rows if row.response)
    while waiting and min(left) > 0:
        row, start = waiting.popleft()
        text = row.response or ""
        prompts = [len(encode_prompt(tokenizer, row.prompt)) for tokenizer in distinct]
        rooms = [min(max_length - prompt, budget) for prompt, budget in zip(prompts, left, strict=True)]
        if min(rooms) < 1:
            continue
        characters, _ = fitting(text, list(zip(distinct, rooms, strict=True)), start, ends=row.ends)
        stop = start + characters
        passage = replace(row, response=text[start:stop], ends=row.ends and stop == len(text))
        sizes = [len(answer_ids(tokenizer, passage)) for tokenizer in distinct]
        if any(size > room for size, room in zip(sizes, rooms, strict=True)):
            continue  # one letter is of more tokens than there is room for
        found.append(passage)
        left = [budget - size for budget, size in zip(left, sizes, strict=True)]
        if row.prompt == "" and stop < len(text):
            waiting.append((row, stop))
    return found


def answer_ids(tokenizer: "PreTrainedTokenizerBase", passage: Example) -> list[int]:
    """Token ids of a passage's text, with the end-of-sequence token where it ends."""
    return encode_response(tokenizer, passage.response or "")[: None if passage.ends else -1]
