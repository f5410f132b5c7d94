"""The three shapes of a reply, made one: legacy completions, chat, and llama.cpp's chat shape with ids everywhere."""

import codecs
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from distill.served.answer import Alternative, Answer, Token
from distill.served.faults import Malformed

# Servers write -9999 or -3.4e38 where a probability underflows float32; this is the log of the smallest number above 0.
SMALLEST_LOGPROB = -103.28

FINISHES: Mapping[str, Literal["stop", "length", "filtered"]] = {
    "stop": "stop",
    "eos": "stop",
    "stop_sequence": "stop",
    "tool_calls": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "filtered",
}

_TOKEN_ID = re.compile(r"token_id:(\d+)\Z")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Usage:
    """Tokens that the server counted."""

    prompt_tokens: int
    answer_tokens: int


def checked(read: Callable[[Mapping[str, Any]], _Result]) -> Callable[[Mapping[str, Any]], _Result]:
    """`read`, with every way in which a reply can have the wrong shape turned into Malformed."""

    def reading(reply: Mapping[str, Any]) -> _Result:
        try:
            return read(reply)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
            said = f"{type(problem).__name__}: {problem}"[:100]
        raise Malformed(f"a reply of another shape ({said})")

    return reading


def only_choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """The choice of a reply that must hold exactly one."""
    choices = reply["choices"]
    if len(choices) != 1:
        raise Malformed(f"{len(choices)} choices instead of 1")
    return choices[0]


def usage_of(reply: Mapping[str, Any]) -> Usage:
    usage = reply["usage"]
    return Usage(int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0))


def read_answer(reply: Mapping[str, Any]) -> Answer:
    """The answer in a reply of either endpoint; its tokens when the server gave one entry for each of them."""
    choice = only_choice(reply)
    finish = FINISHES.get(str(choice["finish_reason"]))
    if finish is None:
        raise Malformed(f"finish_reason {choice['finish_reason']!r}, so the answer is not over")
    text = _text(choice["message"].get("content") if "message" in choice else choice["text"])
    usage = usage_of(reply)
    tokens = read_tokens(choice.get("logprobs"))
    if tokens is not None and not _complete(tokens, usage.answer_tokens, finish):
        tokens = None
    return Answer(
        text=text,
        finish=finish,
        tokens=tokens,
        prompt_tokens=usage.prompt_tokens,
        answer_tokens=usage.answer_tokens,
        model=str(reply.get("model") or ""),
        fingerprint=reply.get("system_fingerprint"),
    )


def _text(content: Any) -> str:
    """What was said. Of a list of parts (Mistral's reasoning models) the text: what was thought is no answer."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    # half of a surrogate pair, where an answer was cut: no file can hold it
    return str(content or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_tokens(logprobs: Mapping[str, Any] | None) -> tuple[Token, ...] | None:
    """The tokens of a `logprobs` object of any shape; None when there is none. A first token without one has NaN."""
    if logprobs is None:
        return None
    if logprobs.get("content") is not None:
        return tuple(_entry_token(entry) for entry in logprobs["content"])
    if logprobs.get("tokens") is None:
        return None
    names, values = logprobs["tokens"], logprobs["token_logprobs"]
    tops = logprobs.get("top_logprobs") or [None] * len(names)
    return tuple(
        Token(*_named(name), math.nan if value is None else _logprob(value), _sorted(_named_top(top)))
        for name, value, top in zip(names, values, tops, strict=True)
    )


def read_prompt_logprobs(positions: Sequence[Mapping[str, Any] | None]) -> list[tuple[Alternative, ...]]:
    """vLLM's `prompt_logprobs`: for each prompt token the alternatives in its place; nothing for the first."""
    return [
        _sorted(Alternative(int(id), None, _logprob(entry["logprob"])) for id, entry in (position or {}).items())
        for position in positions
    ]


def with_token(top: Sequence[Alternative], token: Alternative | Token) -> tuple[Alternative, ...]:
    """`top` and the token that was said, if it is not among them, the likeliest first."""
    same = [a for a in top if (a.id == token.id if token.id is not None else a.bytes == token.bytes)]
    return tuple(top) if same else _sorted([*top, Alternative(token.id, token.bytes, token.logprob)])


def _complete(tokens: Sequence[Token], answer_tokens: int, finish: str) -> bool:
    """One entry for every token that the server counts, the end token aside, which some servers do not tell.

    llama.cpp gives one entry for a character of several tokens, and its bytes look whole: only the count tells.
    """
    if len(tokens) == answer_tokens:
        return True
    told_end = bool(tokens) and tokens[-1].bytes == b""
    return finish == "stop" and len(tokens) == answer_tokens - 1 and not told_end


def _entry_token(entry: Mapping[str, Any]) -> Token:
    said = _entry(entry)
    return Token(said.id, said.bytes, said.logprob, _sorted(_entry(top) for top in entry.get("top_logprobs") or ()))


def _entry(entry: Mapping[str, Any]) -> Alternative:
    id, content = _named(entry["token"])
    if entry.get("id") is not None:
        id = int(entry["id"])
    if entry.get("bytes") is not None and content is not None:
        content = bytes(entry["bytes"])
    return Alternative(id, content, _logprob(entry["logprob"]))


def _named_top(top: Mapping[str, Any] | None) -> list[Alternative]:
    return [Alternative(*_named(name), _logprob(value)) for name, value in (top or {}).items()]


def _named(name: str) -> tuple[int | None, bytes | None]:
    """Id and bytes of a token given as a string: vLLM may write its id, OpenAI its bytes where they are no text."""
    if found := _TOKEN_ID.match(name):
        return int(found[1]), None
    if name.startswith("bytes:\\x"):
        return None, codecs.escape_decode(name[len("bytes:") :])[0]  # type: ignore[return-value]
    return None, name.encode("utf-8", errors="surrogatepass")


def _logprob(value: float) -> float:
    number = float(value)
    if math.isnan(number) or number > 1e-3:
        raise Malformed(f"a log-probability of {number}")
    return max(SMALLEST_LOGPROB, min(0.0, number))


def _sorted(alternatives) -> tuple[Alternative, ...]:
    return tuple(sorted(alternatives, key=lambda alternative: -alternative.logprob))
