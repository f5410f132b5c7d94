"""Windows: a plain text that is longer than a row, as rows that follow each other; nothing of it is thrown away.

Each window is an example of its own. It begins as every plain text does (`encode_prompt` of nothing) and is a slice of
the text that fits; the last one alone ends, with the end-of-sequence token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from distill.encoding import encode_prompt, tokenizer_hash
from distill.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Side = tuple["PreTrainedTokenizerBase", int]
"""A tokenizer, and how many of its tokens there is room for."""
LOOKED_AT = 8
"""Characters for a token of room that are encoded at first: a book is not encoded to its end for each of its rows."""


def in_windows(
    examples: Sequence[Example], tokenizers: Sequence["PreTrainedTokenizerBase"], max_length: int
) -> tuple[list[Example], int]:
    """The rows, plain texts as windows of at most `max_length` tokens in each of the tokenizers; and their tokens.

    A row with a prompt stays as it is, and so does one without a text. Tokens are counted in the plain texts alone, in
    the tokenizer that has most for them, the first and the last of a row included.
    """
    sides = [
        (tokenizer, max(1, max_length - len(encode_prompt(tokenizer, ""))))
        for tokenizer in {tokenizer_hash(one): one for one in tokenizers}.values()
    ]
    made, tokens = [], 0
    for example in examples:
        if example.prompt != "" or not example.response:
            made.append(example)
            continue
        for text, ends, num_tokens in windows_of(example.response, sides, ends=example.ends):
            made.append(replace(example, response=text, ends=ends))
            tokens += num_tokens + max_length - sides[0][1]
    return made, tokens


def windows_of(text: str, sides: Sequence[Side], *, ends: bool = True) -> Iterator[tuple[str, bool, int]]:
    """(slice, whether it ends, its tokens with the end's) for each slice of the text, in its order.

    `ends`: whether the text does, or goes on somewhere else.
    """
    start = 0
    while start < len(text):
        characters, tokens = fitting(text, sides, start, ends=ends)
        yield text[start : start + characters], ends and start + characters == len(text), tokens
        start += characters


def fitting(text: str, sides: Sequence[Side], start: int = 0, *, ends: bool = True) -> tuple[int, int]:
    """How many characters of `text` from `start` on fit into the room of every side, at least one; and their tokens.

    Where the text ends, all of them only if the end-of-sequence token fits too, which is counted then.
    """
    return min(_fitting(text, start, cast(Any, tokenizer), room, ends) for tokenizer, room in sides)


def _fitting(text: str, start: int, tokenizer: Any, room: int, ends: bool) -> tuple[int, int]:
    looked_at = LOOKED_AT * room
    while True:
        part = text[start : start + looked_at]
        is_rest = start + looked_at >= len(text)
        encoded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        if is_rest and len(offsets) + ends <= room:
            return len(part), len(offsets) + ends
        if is_rest or len(offsets) > room:
            break
        looked_at *= 2
    kept = min(room, len(offsets) - 1)
    # the bytes of one character may be several tokens
    while kept > 1 and offsets[kept][0] < offsets[kept - 1][1]:
        kept -= 1
    return max(1, offsets[kept - 1][1]), kept
