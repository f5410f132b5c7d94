"""What is asked of a served teacher and what it answers, whichever endpoint and reply shape it came through."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distill.errors import DataError

MESSAGE_TOKENS, CHAT_TOKENS = 8, 64
"""What a chat template may add, for each message and once: part of the bound of a prompt's tokens."""

SEED_STEP = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt, as chat messages or as token ids, and how to answer it."""

    messages: tuple[Mapping[str, str], ...] | None = None
    """Chat messages of `role` and `content`; the server applies its own template."""
    token_ids: tuple[int, ...] | None = None
    """A prompt in the teacher's own tokens, taken as it is; needs an endpoint that accepts it."""
    max_tokens: int
    """Most tokens of the answer."""
    temperature: float = 0.0
    seed: int | None = None
    sample: int = 0
    """Number of this answer among several to the same prompt; part of what makes it another answer."""

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.token_ids is None):
            raise DataError("a request holds either chat messages or token ids, and exactly one of the two")
        if not (self.messages or self.token_ids):
            raise DataError("a request has an empty prompt; needed: at least one message or token")
        if self.max_tokens < 1:
            raise DataError(f"a request asks for {self.max_tokens} tokens; needed: at least one")

    @property
    def sent_seed(self) -> int | None:
        """The seed for the server, another one for every sample; None leaves it to the server."""
        return None if self.seed is None else (self.seed + SEED_STEP * self.sample) % 2**31

    def prompt_tokens_at_most(self, template_tokens: int = 0) -> int:
        """Exact for token ids; for messages their bytes, which no tokenizer exceeds, and the template's own tokens.

        `template_tokens`: what a short chat was seen to have; a template's default system prompt may be long.
        """
        if self.token_ids is not None:
            return len(self.token_ids)
        assert self.messages is not None
        text_bytes = sum(len(str(part).encode()) for message in self.messages for part in message.values())
        return text_bytes + MESSAGE_TOKENS * len(self.messages) + max(CHAT_TOKENS, template_tokens)

    def key(self, model: str, top_logprobs: int) -> str:
        """SHA-256 (40 hex digits) of everything that decides the answer."""
        asked = {
            "model": model,
            "messages": None if self.messages is None else [dict(message) for message in self.messages],
            "token_ids": None if self.token_ids is None else list(self.token_ids),
            "max_tokens": self.max_tokens,
            "temperature": float(self.temperature),
            "seed": self.seed,
            "sample": self.sample,
            "top_logprobs": top_logprobs,
        }
        return content_key("answer", asked)


@dataclass(frozen=True)
class Alternative:
    """A token that the teacher might have said: its id or its bytes, whichever is told, and ln p in nats."""

    id: int | None
    bytes: bytes | None
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token that the teacher said, and the likeliest ones in its place, the likeliest first."""

    id: int | None
    bytes: bytes | None
    logprob: float
    top: tuple[Alternative, ...]


@dataclass(frozen=True)
class Answer:
    """What the teacher said to one request.

    `tokens` is None where none were asked for, or where the server left some out, as llama.cpp does with characters
    of several tokens: a list with gaps would put targets on the wrong positions. An end token is the last of them where
    the server tells it (llama.cpp and vLLM do, OpenAI does not).
    """

    text: str
    finish: Literal["stop", "length", "filtered"]
    tokens: tuple[Token, ...] | None
    prompt_tokens: int
    answer_tokens: int
    model: str
    fingerprint: str | None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What asking for the missing answers takes, at most: `cost` is None without prices."""

    num_requests: int
    num_missing: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None

    def __str__(self) -> str:
        known = self.num_requests - self.num_missing
        money = "" if self.cost is None else f", at most {self.cost:.6g} in money"
        return (
            f"{self.num_missing} of {self.num_requests} requests to ask ({known} are in the journal): at most "
            f"{self.prompt_tokens:,} prompt tokens and {self.answer_tokens:,} answer tokens{money}"
        )


def content_key(kind: str, asked: Mapping[str, Any]) -> str:
    """SHA-256 (40 hex digits) of a request in canonical JSON."""
    text = json.dumps({"kind": kind, **asked}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """Plain JSON of an answer; bytes as hexadecimal digits."""
    tokens = None
    if answer.tokens is not None:
        tokens = [[*_row(token), alternatives_to_json(token.top)] for token in answer.tokens]
    return {**answer.__dict__, "tokens": tokens}


def answer_from_json(kept: Mapping[str, Any]) -> Answer:
    """The answer that `answer_to_json` wrote down, equal in every field."""
    tokens = None
    if kept["tokens"] is not None:
        tokens = tuple(
            Token(id, _bytes(digits), logprob, alternatives_from_json(top))
            for id, digits, logprob, top in kept["tokens"]
        )
    return Answer(**{**kept, "tokens": tokens})


def alternatives_to_json(alternatives: Sequence[Alternative]) -> list[list[Any]]:
    return [_row(alternative) for alternative in alternatives]


def alternatives_from_json(rows: Sequence[Sequence[Any]]) -> tuple[Alternative, ...]:
    return tuple(Alternative(id, _bytes(digits), logprob) for id, digits, logprob in rows)


def _row(token: Alternative | Token) -> list[Any]:
    return [token.id, None if token.bytes is None else token.bytes.hex(), token.logprob]


def _bytes(digits: str | None) -> bytes | None:
    return None if digits is None else bytes.fromhex(digits)
