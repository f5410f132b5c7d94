"""What a served teacher's tokens are in the ids of its tokenizer, and the targets that their log-probabilities make."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from distill.alignment import TokenBytes
from distill.answer_file.given import padded
from distill.answer_file.top_k import next_logprobs, top_k_targets
from distill.encoding import decode_response
from distill.served.answer import Alternative, Answer, Token
from distill.targets import Layout, RowTargets
from distill.targets.next_token import NextTokenTargets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Top = tuple[list[int], list[float]]
"""Ids and log-probabilities of the likeliest tokens of one position."""

# S positions, K token ids given, V vocabulary


@dataclass(frozen=True)
class Said:
    """An answer's token ids without its end, a `Token` for each of them, and the end's where the server told it."""

    ids: list[int]
    tokens: Sequence[Token]
    end: Token | None


class TokenIds:
    """Ids of tokens that a server names by id or by bytes. Bytes that several ids stand for name none of them.

    `ends`: ids that say the same as the tokenizer's end of sequence where an answer ends (see `over`).
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocab_size: int, ends: Collection[int] = ()):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.bytes = TokenBytes(tokenizer)
        self.eos = cast(int, tokenizer.eos_token_id)
        self.ends = frozenset({self.eos, *ends})
        added = tokenizer.added_tokens_decoder
        self.special = {self.eos, *(number for number, token in added.items() if token.special)}
        self._of_bytes = self._by_bytes()

    def of(self, answer: Answer) -> Said | None:
        """The answer's tokens; None where some were not told, are of no single id, or do not read as its text does."""
        if answer.tokens is None:
            return None
        tokens, end = list(answer.tokens), None
        if answer.finish == "stop" and tokens and self._is_end(tokens[-1]):
            end = tokens.pop()
        ids = self._ids(tokens, answer.text)
        # servers and tokenizers differ in the blanks around an answer
        if ids is None or decode_response(self.tokenizer, ids).strip() != answer.text.strip():
            return None
        return Said(ids, tokens, end)

    def top(self, alternatives: Iterable[Alternative], following: int | None = None) -> Top:
        """Ids and log-probabilities; what is of no single id is left out, so that its mass is in the tail.

        `following` is the token that the row goes on with: its bytes are known to be meant, whoever shares them.
        """
        ids, logprobs, seen = [], [], set()
        spelled = None if following is None else self.bytes.of(following)
        nothing = b"" if following in self.special else spelled
        for alternative in alternatives:
            number = alternative.id
            if number is None:
                # some servers write nothing for an end token, and nothing else that can follow there is written so
                meant = following is not None and alternative.bytes in (spelled, nothing)
                number = following if meant else self._of_bytes.get(alternative.bytes or b"")
            if number is not None and 0 <= number < self.vocab_size and number not in seen:
                seen.add(number)
                ids.append(number)
                logprobs.append(alternative.logprob)
        return ids, logprobs

    def tops(self, said: Said) -> tuple[list[Top], list[float]]:
        """For each token of the answer and for its end: the likeliest ones, and its own log-probability.

        An end of another id than the tokenizer's end of sequence counts as that one, as in the row's ids. OpenAI tells
        no end. Then all that is known is that the teacher ended there; how sure it was is taken to be how sure it was
        of the answer's tokens on average (the geometric mean of their probabilities), the others share the rest.
        """
        tops = [
            self.top(token.top, number) if token.top else ([number], [token.logprob])
            for number, token in zip(said.ids, said.tokens, strict=True)
        ]
        own = [token.logprob for token in said.tokens]
        if said.end is not None:
            end = said.end
            others = (a for a in end.top if (a.bytes != end.bytes if end.id is None else a.id != end.id))
            ids, logprobs = self.top(others)
            over = self.over(([self.eos, *ids], [end.logprob, *logprobs]))
            return [*tops, over], [*own, over[1][0]]
        guess = float(np.mean(own)) if own else 0.0
        return [*tops, ([self.eos], [guess])], [*own, guess]

    def over(self, top: Top) -> Top:
        """`top` where an answer ends: every end as the tokenizer's end of sequence, their probabilities added up."""
        merged: dict[int, float] = {}
        for number, logprob in zip(*top, strict=True):
            meant = self.eos if number in self.ends else number
            merged[meant] = float(np.logaddexp(merged.get(meant, -np.inf), logprob))
        return [*merged], [*merged.values()]

    def knows(self, content: bytes) -> bool:
        """Whether some token stands for these bytes, or, blanks aside, begins with them."""
        return content in self._of_bytes or content.strip() in self._of_bytes or b" " + content in self._of_bytes

    def _is_end(self, token: Token) -> bool:
        if token.id is not None:
            return token.id in self.special
        return not token.bytes or token.bytes in {self.bytes.of(number) for number in self.special}

    def _ids(self, tokens: Sequence[Token], text: str) -> list[int] | None:
        if all(token.id is not None for token in tokens):
            ids = [cast(int, token.id) for token in tokens]
            return ids if all(0 <= number < self.vocab_size for number in ids) else None
        spelled = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        own, told = [self.bytes.of(number) for number in spelled], [token.bytes or b"" for token in tokens]
        # the first token may carry a blank that the text does not have
        if [*map(bytes.lstrip, own[:1]), *own[1:]] == [*map(bytes.lstrip, told[:1]), *told[1:]]:
            return spelled
        ids = [self._of_bytes.get(token.bytes or b"") for token in tokens]
        return None if None in ids else cast(list[int], ids)

    def _by_bytes(self) -> dict[bytes, int | None]:
        """The id of each byte string that one token alone stands for; a fallback for single bytes does not count."""
        found: dict[bytes, int | None] = {}
        fallback = []
        for piece, number in self.tokenizer.get_vocab().items():
            if len(piece) == 6 and piece.startswith("<0x"):
                fallback.append(number)
                continue
            content = self.bytes.of(number)
            found[content] = None if content in found else number
        for number in fallback:
            found.setdefault(self.bytes.of(number), number)
        return found


def end_ids(checkpoint: Path, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's end of sequence, and those that the checkpoint's files name.

    Llama 3 has two and Gemma's chat models say another one than their tokenizers do. Of a tokenizer alone, its own.
    """
    eos = cast(int, tokenizer.eos_token_id)
    for name in ("generation_config.json", "config.json"):
        file = checkpoint / name
        found = json.loads(file.read_text("utf-8")).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return frozenset({eos, *(found if isinstance(found, list) else [found])})
    return frozenset({eos})


def targets(
    tops: Sequence[Top], own: Sequence[float], next_ids: Sequence[int], layout: Layout, where: str
) -> RowTargets:
    """The targets of the positions before `next_ids`; `own` are these tokens' log-probabilities, NaN where not known.

    Raises:
        DataError: the log-probabilities are none; `where` says whose they are.
    """
    ids_SK, logprobs_SK = padded([ids for ids, _ in tops], [logprobs for _, logprobs in tops], where)
    next_S, own_S = np.asarray(next_ids, dtype=np.int64), np.asarray(own, dtype=np.float64)
    if layout.kind == "next":
        return NextTokenTargets(next_logprobs(ids_SK, logprobs_SK, next_S, own_S, where))
    return top_k_targets(ids_SK, logprobs_SK, next_S, own_S, layout, "exact", where)
