"""The teacher's log-probabilities for rows that somebody else wrote: three ways, the same result."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.errors import StageFailed
from distill.served._asker import Asker
from distill.served._replies import (
    Usage,
    checked,
    only_choice,
    read_answer,
    read_prompt_logprobs,
    read_tokens,
    with_token,
)
from distill.served.answer import Alternative, Token, alternatives_from_json, alternatives_to_json, content_key
from distill.served.faults import Malformed
from distill.served.probe import BY_ID, PUSH, Capabilities, echoed

Tops = list[tuple[Alternative, ...]]


def score_key(model: str, row: Sequence[int], positions: range, top_logprobs: int) -> str:
    """SHA-256 (40 hex digits) of everything that decides the scores of a row."""
    asked = {"model": model, "row": list(row), "positions": list(positions), "top_logprobs": top_logprobs}
    return content_key("score", asked)


def tops_from_json(kept: Mapping[str, Any]) -> Tops:
    return [alternatives_from_json(rows) for rows in kept["tops"]]


async def score(
    asker: Asker, found: Capabilities, row: Sequence[int], positions: range, top_logprobs: int, key: str
) -> Tops:
    """For each position the likeliest next tokens, the one that really follows among them; kept under `key`."""

    def keep(tops: Tops) -> tuple[str, Mapping[str, Any]]:
        return key, {"tops": [alternatives_to_json(top) for top in tops]}

    if found.scoring != "stepwise":
        return await _in_one_request(asker, found, row, positions, top_logprobs, keep)
    tops = [await _step(asker, found, row, position, top_logprobs, key) for position in positions]
    asker.journal.keep(*keep(tops))
    return tops


async def _in_one_request(asker, found, row, positions, top_logprobs, keep) -> Tops:
    body: dict[str, Any] = {"prompt": list(row), "max_tokens": 1, "temperature": 0.0}
    if found.scoring == "prompt_logprobs":
        # The token after the row's last has no place among the prompt's; it is the one that is generated.
        body |= {"prompt_logprobs": top_logprobs, "logprobs": top_logprobs, **BY_ID}
        read = _read_prompt_logprobs
    else:
        body |= {"echo": True, "logprobs": top_logprobs, **(BY_ID if found.extensions else {})}
        read = _read_echo

    def read_positions(reply: Mapping[str, Any]) -> Tops:
        tops = read(reply, row)
        if len(tops) <= max(positions, default=-1) + 1 or not all(tops[position + 1] for position in positions):
            raise Malformed(f"log-probabilities for {len(tops)} of {len(row)} tokens")
        return [tops[position + 1] for position in positions]

    most = Usage(len(row), 1)
    name = f"scores {keep([])[0][:8]}"
    return await asker.post("/completions", body, checked(read_positions), most=most, name=name, keep=keep)


def _read_prompt_logprobs(reply: Mapping[str, Any], row: Sequence[int]) -> Tops:
    choice = only_choice(reply)
    tops = read_prompt_logprobs(choice["prompt_logprobs"])
    if len(tops) != len(row):
        raise Malformed(f"prompt_logprobs for {len(tops)} tokens instead of {len(row)}")
    for position, token_id in enumerate(row[1:], start=1):
        if all(alternative.id != token_id for alternative in tops[position]):
            raise Malformed(f"prompt_logprobs of other tokens at position {position}")
    generated = read_tokens(choice.get("logprobs")) or ()
    return tops + [with_token(token.top, token) for token in generated[:1]]


def _read_echo(reply: Mapping[str, Any], row: Sequence[int]) -> Tops:
    tokens: tuple[Token, ...] = echoed(reply)
    if len(tokens) not in (len(row), len(row) + 1):
        raise Malformed(f"an echo of {len(tokens)} tokens instead of {len(row)}")
    for position, token in enumerate(tokens[: len(row)]):
        if token.id is not None and token.id != row[position]:
            raise Malformed(f"an echo of another token at position {position}")
    return [(), *(with_token(token.top, token) for token in tokens[1:])]


async def _step(asker, found, row, position: int, top_logprobs: int, key: str) -> tuple[Alternative, ...]:
    """One position: the server is pushed to say the token that really follows, and tells its log-probability.

    A server may swallow a token that is half a character. Then a plain letter is pushed instead, and the real token is
    found among all that the server gives.
    """
    following = row[position + 1] if position + 1 < len(row) else None
    if following is not None:
        tokens = await _push(asker, row[: position + 1], following, top_logprobs, key)
        if tokens and tokens[0].id == following:
            return with_token(tokens[0].top, tokens[0])
    number = top_logprobs if following is None else found.completion_logprobs
    tokens = await _push(asker, row[: position + 1], found.plain_token, number, key)
    if not tokens or tokens[0].id != found.plain_token:
        raise StageFailed(f"{asker.endpoint.base_url} gave no log-probabilities after token {position} of a row.")
    top = tokens[0].top
    return top[:top_logprobs] + tuple(a for a in top[top_logprobs:] if a.id == following)


async def _push(asker: Asker, prompt: Sequence[int], token_id: int, number: int, key: str) -> tuple[Token, ...] | None:
    body = {
        "prompt": list(prompt),
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": number,
        "logit_bias": {str(token_id): PUSH},
    }
    name = f"scores {key[:8]} after {len(prompt)} tokens"
    answer = await asker.post("/completions", body, checked(read_answer), most=Usage(len(prompt), 1), name=name)
    return answer.tokens
