"""check_tokenizer(): whether the tokenizer that the recipe names is the one that the endpoint uses."""

from distill.encoding import decode_response, encode_prompt
from distill.errors import TargetMismatch
from distill.served.answer import Alternative, Answer, Request
from distill.served.client import Served
from distill.served.faults import PromptsTooLong
from distill.stages._served_plan import Plan
from distill.stages._served_tokens import TokenIds
from distill.teacher._served import Served as Option

SHORT, MIDDLE = "Once there was{} a king.", ", on 24 May, a naïve (but extraordinarily curious) schoolteacher beside"
"""With and without what stands in the middle: a chat template adds the same to both."""
TOKENS, MOST_TOPS = 8, 5
BOUNDARY_TOKENS = 2
"""By which counts may differ where templates touch the text in other ways."""
REPLACED = "\ufffd".encode()
"""What servers that name tokens by text write for a part of a character."""
_ADVICE = "Name the teacher's own with teacher.tokenizer, or use loss=text without it."


def check_tokenizer(served: Served, plan: Plan, tokens: TokenIds, teacher: Option, where: str) -> None:
    """Holds what the endpoint calls its tokens, and how many a text has, against the tokenizer.

    At most three requests of a few tokens, in the journal like any others, so paid once.

    Raises:
        TargetMismatch: they differ; both sides are named.
    """
    able = served.capabilities
    name = teacher.tokenizer_from[0] if teacher.tokenizer_from else ""
    if able.vocab_size is not None and len(tokens.tokenizer) > able.vocab_size:
        raise TargetMismatch(
            f"{where} has {able.vocab_size:,} tokens, but the tokenizer {name} has {len(tokens.tokenizer):,}. {_ADVICE}"
        )
    difference = _other_words(served, plan, tokens) or (_other_counts(served, tokens) if able.chat else None)
    if difference is not None:
        raise TargetMismatch(f"{where} and the tokenizer {name} do not speak the same tokens: {difference} {_ADVICE}")


def _other_words(served: Served, plan: Plan, tokens: TokenIds) -> str | None:
    """The first token that they do not agree on, in words; None where the endpoint names none."""
    able = served.capabilities
    most = able.completion_logprobs if plan.by_ids else able.chat_logprobs
    if not most or not (able.ids or able.bytes):
        return None
    text = SHORT.format("")
    if plan.by_ids:
        request = Request(token_ids=tuple(encode_prompt(tokens.tokenizer, text)), max_tokens=TOKENS)
    else:
        request = Request(messages=({"role": "user", "content": text},), max_tokens=TOKENS)
    (answer,) = served.answer([request], top_logprobs=min(most, MOST_TOPS), announced=True)
    return _other_word(answer, tokens)


def _other_counts(served: Served, tokens: TokenIds) -> str | None:
    """By how many tokens the middle of a text makes it longer, where the two do not agree."""
    texts = SHORT.format(""), SHORT.format(MIDDLE)
    try:
        asked = [Request(messages=({"role": "user", "content": text},), max_tokens=1) for text in texts]
        answers = served.answer(asked, announced=True)
    except PromptsTooLong:
        return None
    theirs = answers[1].prompt_tokens - answers[0].prompt_tokens
    ours = len(encode_prompt(tokens.tokenizer, texts[1])) - len(encode_prompt(tokens.tokenizer, texts[0]))
    if not answers[0].prompt_tokens or abs(theirs - ours) <= BOUNDARY_TOKENS:
        return None
    return f"{MIDDLE!r} is {theirs} tokens at the endpoint and {ours} here."


def _other_word(answer: Answer, tokens: TokenIds) -> str | None:
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
