"""Capabilities: what an endpoint can do, found out with a few requests of one token each."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from distill.errors import RecipeError
from distill.served._asker import Asker
from distill.served._replies import (
    Usage,
    checked,
    only_choice,
    read_answer,
    read_prompt_logprobs,
    read_tokens,
    usage_of,
)
from distill.served.answer import CHAT_TOKENS, Answer, Token
from distill.served.faults import NOT_THERE, Fault, Refused, as_error, list_of

PROBE_IDS = (1, 2, 3)
PROBE_TEXT = "Hello"
PROBE_USAGE = Usage(CHAT_TOKENS + 16, 1)
CHAT_LIMITS = (20, 5)
"""What OpenAI allows, and what others do; llama.cpp gives more, which is tried where the vocabulary is known."""
LARGE = 4096
"""Log-probabilities asked for first where nobody says how large the vocabulary is."""
BY_ID = {"return_tokens_as_token_ids": True}
"""vLLM's extension: tokens are named by id. Ignored by llama.cpp and SGLang, refused by OpenAI."""

PUSH = 1_000_000_000
"""Added to the logit of the token that the server is to say; what it reports are the logits before any push."""

PLAIN_SAMPLING = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""No cut-offs: llama.cpp has top_k=40, top_p=0.95 and min_p=0.05 of its own, vLLM generation_config.json's. Some refuse
these values for no cut-off (OpenRouter wants a top_k of 0 or more, TGI a top_p below 1): there they are left out."""
EXTENSIONS = {**PLAIN_SAMPLING, **BY_ID}

Scoring = Literal["prompt_logprobs", "echo", "stepwise"]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What the endpoint offers; numbers of log-probabilities are per token, 0 where it gives none."""

    models: tuple[str, ...] | None = None
    """Names it lists; None where it does not say."""
    context_tokens: int | None = None
    vocab_size: int | None = None
    chat: bool = False
    completions: bool = False
    token_prompts: bool = False
    """Prompts may be token ids."""
    chat_logprobs: int = 0
    completion_logprobs: int = 0
    ids: bool = False
    """Tokens come back with their ids; else only as bytes or text."""
    bytes: bool = False
    extensions: bool = False
    """Parameters beyond OpenAI's are taken or ignored, so that sampling can be asked for without any cut-off."""
    template_tokens: int = 0
    """What the chat template makes of a prompt of one token, its own default system prompt included."""
    limit_name: str = "max_tokens"
    """Under which name chat wants the most tokens of an answer."""
    scoring: Scoring | None = None
    """How the log-probabilities of a given row are got."""
    score_logprobs: int = 0
    plain_token: int | None = None
    """Id of a letter, which stepwise scoring lets the server say where the real next token would be swallowed."""

    def __str__(self) -> str:
        ways = [name for name, there in (("chat", self.chat), ("completions", self.completions)) if there]
        whole = " (the whole vocabulary)" if self.vocab_size == self.most_logprobs else ""
        named = " and ".join(name for name, there in (("ids", self.ids), ("bytes", self.bytes)) if there)
        logprobs = f"up to {self.most_logprobs} log-probabilities per token{whole}, with {named}"
        scoring = {
            "prompt_logprobs": "rows scored in one request by prompt_logprobs",
            "echo": "rows scored in one request by echo",
            "stepwise": "rows scored position by position",
            None: "rows cannot be scored",
        }[self.scoring]
        context = "" if self.context_tokens is None else f"; context of {self.context_tokens:,} tokens"
        return (
            f"{' and '.join(ways)}; {logprobs if self.most_logprobs else 'no log-probabilities'}; "
            f"prompts as token ids {'accepted' if self.token_prompts else 'not accepted'}; {scoring}{context}"
        )

    @property
    def most_logprobs(self) -> int:
        return max(self.chat_logprobs, self.completion_logprobs)


async def probe(asker: Asker) -> Capabilities:
    """What the endpoint can do.

    Raises:
        RecipeError: it cannot be reached, refuses the key, or does not have the model.
    """
    found = await _models(asker)
    found, no_completions = await _completions(asker, found)
    found, no_chat = await _chat(asker, found)
    if not (found.chat or found.completions):
        faults = [fault for fault in (no_chat, no_completions) if fault is not None]
        named = [fault for fault in faults if asker.endpoint.model in fault.said]
        raise as_error((named or faults)[0], asker.endpoint.base_url, asker.endpoint.model, found.models)
    return await _scoring(asker, found) if found.token_prompts else found


async def _models(asker: Asker) -> Capabilities:
    endpoint = asker.endpoint
    try:
        reply = await asker.get("/models")
    except Refused as refused:
        fault = refused.fault
    else:
        entries = [entry for entry in _list(reply) if isinstance(entry, dict) and entry.get("id")]
        return _listed(endpoint.base_url, endpoint.model, entries)
    if fault.kind == "connection" or fault.kind == "timeout":
        raise RecipeError(
            f"{endpoint.base_url} cannot be reached ({fault.said}). Is the server running, and is base_url right?"
        )
    if fault.status in (401, 403):
        raise as_error(fault, endpoint.base_url, endpoint.model, None)
    return Capabilities()  # not every endpoint lists its models


def _list(reply: Any) -> Sequence[Any]:
    entries = reply.get("data") if isinstance(reply, dict) else reply
    return entries if isinstance(entries, list) else []


def _listed(base_url: str, model: str, entries: Sequence[Mapping[str, Any]]) -> Capabilities:
    names = {str(entry["id"]): entry for entry in entries}
    for entry in entries:
        names.update({str(alias): entry for alias in entry.get("aliases") or ()})
    mine = names.get(model) or names.get(f"models/{model}")  # Gemini's prefix
    # Azure lists the models one can deploy, and is asked by the name of a deployment.
    is_azure = (urlsplit(base_url).hostname or "").endswith(".azure.com")
    if names and mine is None and not is_azure:
        raise RecipeError(f"{base_url} has no model {model!r}. {list_of(tuple(sorted(names)))}")
    meta = (mine or {}).get("meta") or {}
    context = meta.get("n_ctx") or (mine or {}).get("max_model_len")
    return Capabilities(
        models=tuple(sorted(names)), context_tokens=context and int(context), vocab_size=meta.get("n_vocab")
    )


async def _completions(asker: Asker, found: Capabilities) -> tuple[Capabilities, Fault | None]:
    """Completions: whether, with which prompts, and how many log-probabilities."""
    for prompt, extra in ((PROBE_IDS, EXTENSIONS), (PROBE_IDS, {}), (PROBE_TEXT, {})):
        body = {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, **extra}
        answer, fault = await _try(asker, "/completions", body, read_answer)
        if fault is not None and fault.status in NOT_THERE:
            return found, fault
        if answer is not None:
            break
    else:
        return found, fault
    by_ids = prompt is PROBE_IDS and answer.prompt_tokens == len(PROBE_IDS)
    found = replace(found, completions=True, token_prompts=by_ids, extensions=bool(extra))

    async def ask(number: int) -> tuple[Answer | None, Fault | None]:
        return await _try(asker, "/completions", {**body, "logprobs": number}, read_answer)

    most, token = await _most(ask, [found.vocab_size or LARGE])
    return replace(_named(found, token), completion_logprobs=most), None


async def _chat(asker: Asker, found: Capabilities) -> tuple[Capabilities, Fault | None]:
    """Chat: whether, under which limit's name, and how many log-probabilities."""
    fault = None
    for extra in (EXTENSIONS, {}):
        for limit_name in ("max_tokens", "max_completion_tokens"):
            messages = [{"role": "user", "content": PROBE_TEXT}]
            body = {"messages": messages, limit_name: 1, **extra}
            answer, fault = await _try(asker, "/chat/completions", body, read_answer)
            if answer is not None:
                found = replace(found, chat=True, limit_name=limit_name, extensions=found.extensions or bool(extra))
                found = replace(found, template_tokens=answer.prompt_tokens)
                limits = [found.completion_logprobs] if found.completion_logprobs > CHAT_LIMITS[0] else []

                async def ask(number: int, body=body) -> tuple[Answer | None, Fault | None]:
                    asked = {**body, "logprobs": True, "top_logprobs": number}
                    return await _try(asker, "/chat/completions", asked, read_answer)

                most, token = await _most(ask, [*limits, *CHAT_LIMITS], halve=False)
                return replace(_named(found, token), chat_logprobs=most), None
            if fault is not None and fault.status in NOT_THERE:
                return found, fault
    return found, fault


async def _most(ask: Callable, numbers: Sequence[int], *, halve: bool = True) -> tuple[int, Token | None]:
    """(most log-probabilities that are given for a token, a token that came with them).

    A refusal often names the limit: numbers in it are tried before halving.
    """
    left = list(numbers)
    while left:
        number = left.pop(0)
        answer, fault = await ask(number)
        if answer is not None:
            token = answer.tokens[0] if answer.tokens else None
            return (min(number, len(token.top)), token) if token is not None else (0, None)
        if halve and not left and number > 1:
            named = [int(digits) for digits in re.findall(r"\b\d{1,6}\b", fault.said if fault else "")]
            smaller = [n for n in named if 0 < n < number and n != fault.status]
            left = [max(smaller)] if smaller else [number // 2]
    return 0, None


def _named(found: Capabilities, token: Token | None) -> Capabilities:
    if token is None:
        return found
    letters = [a.id for a in token.top if a.id is not None and a.bytes and len(a.bytes) == 1 and a.bytes.isalpha()]
    return replace(
        found,
        ids=found.ids or token.id is not None,
        bytes=found.bytes or token.bytes is not None,
        plain_token=letters[0] if letters and found.plain_token is None else found.plain_token,
    )


async def _scoring(asker: Asker, found: Capabilities) -> Capabilities:
    """The best way to score a row of token ids, by really getting its log-probabilities."""
    number = found.completion_logprobs
    if not number:
        return found
    body = {"prompt": PROBE_IDS, "max_tokens": 1, "temperature": 0.0}
    if found.extensions:
        for few in dict.fromkeys((number, 1)):
            extra = {"prompt_logprobs": few, **BY_ID}
            tops, _ = await _try(asker, "/completions", {**body, **extra}, _prompt_logprobs)
            if tops is not None and len(tops) == len(PROBE_IDS) and all(tops[1:]):
                return replace(found, scoring="prompt_logprobs", score_logprobs=few)
    extra = {"echo": True, "logprobs": number, **(BY_ID if found.extensions else {})}
    tokens, _ = await _try(asker, "/completions", {**body, **extra}, echoed)
    if tokens is not None and len(tokens) in (len(PROBE_IDS), len(PROBE_IDS) + 1) and all(t.top for t in tokens[1:]):
        return replace(found, scoring="echo", score_logprobs=number)
    if found.ids and found.plain_token is not None:
        pushed = {**body, "logprobs": 1, "logit_bias": {str(found.plain_token): PUSH}}
        answer, _ = await _try(asker, "/completions", pushed, read_answer)
        if answer is not None and answer.tokens and answer.tokens[0].id == found.plain_token:
            return replace(found, scoring="stepwise", score_logprobs=number)
    return found


def _prompt_logprobs(reply: Mapping[str, Any]):
    positions = only_choice(reply).get("prompt_logprobs")
    usage_of(reply)
    return None if positions is None else read_prompt_logprobs(positions)


def echoed(reply: Mapping[str, Any]) -> tuple[Token, ...]:
    """The tokens of prompt and answer in a reply to `echo`; those of the answer alone where echo is ignored."""
    return read_tokens(only_choice(reply).get("logprobs")) or ()


async def _try(asker: Asker, path: str, body: Mapping[str, Any], read: Callable) -> tuple[Any, Fault | None]:
    """(the reply as read, None), or (None, why the server refused)."""
    name = f"probe of {path}"
    try:
        return await asker.post(path, body, checked(read), most=PROBE_USAGE, name=name), None
    except Refused as refused:
        fault = refused.fault
    if fault.retry or fault.status in (401, 403, 429):
        raise as_error(fault, asker.endpoint.base_url, asker.endpoint.model, None)
    return None, fault
