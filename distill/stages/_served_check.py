"""check_tokenizer(): whether the tokenizer that the recipe names is the one that the endpoint uses."""

from distill.encoding import decode_response, encode_prompt
from distill.errors import TargetMismatch
from distill.served.answer import Alternative, Answer, Request
from distill.served.client import Served
from distill.stages._served_plan import Plan
from distill.stages._served_tokens import TokenIds
from distill.teacher._served import Served as Option

TEXT = "Once upon a time there were 12 apples, and"
TOKENS = 8
MOST_TOPS = 5
REPLACED = "\ufffd".encode()
"""What servers that name tokens by text write for a part of a character."""


def check_tokenizer(served: Served, plan: Plan, tokens: TokenIds, teacher: Option, where: str) -> None:
    """Lets the endpoint go on with a short text and compares what it calls its tokens with what the tokenizer does.

    The request is in the journal like any other, and paid once. An endpoint that tells neither ids nor bytes cannot be
    checked.

    Raises:
        TargetMismatch: they differ; both sides are named.
    """
    able = served.capabilities
    name = teacher.tokenizer_from[0] if teacher.tokenizer_from else ""
    if able.vocab_size is not None and len(tokens.tokenizer) > able.vocab_size:
        raise TargetMismatch(
            f"{where} has {able.vocab_size:,} tokens, but the tokenizer {name} has {len(tokens.tokenizer):,}. {_ADVICE}"
        )
    most = able.completion_logprobs if plan.by_ids else able.chat_logprobs
    if not most or not (able.ids or able.bytes):
        return
    if plan.by_ids:
        prompt = encode_prompt(tokens.tokenizer, TEXT)
        request = Request(token_ids=tuple(prompt), max_tokens=TOKENS)
    else:
        request = Request(messages=({"role": "user", "content": TEXT},), max_tokens=TOKENS)
    (answer,) = served.answer([request], top_logprobs=min(most, MOST_TOPS))
    difference = _difference(answer, tokens)
    if difference is not None:
        raise TargetMismatch(f"{where} and the tokenizer {name} do not speak the same tokens: {difference} {_ADVICE}")


_ADVICE = "Name the teacher's own with teacher.tokenizer, or use loss=text without it."


def _difference(answer: Answer, tokens: TokenIds) -> str | None:
    """The first token that they do not agree on, in words."""
    said = answer.tokens or ()
    for alternative in (a for token in said for a in (Alternative(token.id, token.bytes, 0.0), *token.top)):
        number, content = alternative.id, alternative.bytes
        if number is not None and number >= tokens.vocab_size:
            return f"the endpoint has a token {number}, the tokenizer has {tokens.vocab_size:,} in all."
        if not content or number in tokens.special or REPLACED in content:
            continue
        if number is None:
            if not tokens.knows(content):
                return f"the endpoint has a token {_shown(content)}, the tokenizer has none like it."
        # a server may keep back the part of a character that a token ends in
        elif not tokens.bytes.of(number).startswith(content) and tokens.bytes.of(number).strip() != content.strip():
            return f"token {number} is {_shown(content)} at the endpoint and {_shown(tokens.bytes.of(number))} here."
    ids = [token.id for token in said if token.id is not None and token.id not in tokens.special]
    if len(ids) < len(said) - 1 or any(token.bytes for token in said):
        return None
    read = decode_response(tokens.tokenizer, ids)
    if read.strip() != answer.text.strip():
        return f"the endpoint reads its tokens as {answer.text!r:.60}, the tokenizer as {read!r:.60}."
    return None


def _shown(content: bytes) -> str:
    return repr(content.decode(errors="replace"))
