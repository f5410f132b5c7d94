"""check_tokenizer(), check_temperature(): whether what the endpoint says is in the tokens, and at the temperature, that
targets are of.
"""

from dataclasses import replace

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
SAMPLED_AT = 0.5
"""At which distances between log-probabilities are twice those at 1, where they are of the sampling."""
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


def check_temperature(served: Served, plan: Plan, tokens: TokenIds, teacher: Option, where: str) -> None:
    """Whether log-probabilities are of temperature 1 when answers are sampled at another one: SGLang's are not.

    Two requests of one token, asked each time: a server may be started anew with other settings.

    Raises:
        TargetMismatch: they are of the sampling, or nothing shows that they are not.
    """
    if not plan.from_answers or teacher.temperature in (0.0, 1.0):
        return
    at_one, sharper = (_first_tops(served, plan, tokens, temperature) for temperature in (1.0, SAMPLED_AT))
    shared = sorted(at_one.keys() & sharper.keys(), key=lambda name: -at_one[name])
    plain, found = (sum(tops[shared[0]] - tops[name] for name in shared) for tops in (at_one, sharper))
    if plain > 0 and found < plain * (1 + 1 / SAMPLED_AT) / 2:
        return
    what = "do not show at which temperature they are"
    if plain > 0:
        what = "are those of the temperature that it samples at"
    raise TargetMismatch(
        f"{where}: its log-probabilities {what}; teacher.temperature={teacher.temperature:g}, and targets are at 1. "
        "Use teacher.temperature=1 or 0, or loss=text; SGLang gives them at 1 when it is started with "
        "SGLANG_RETURN_ORIGINAL_LOGPROB=1."
    )


def _first_tops(served: Served, plan: Plan, tokens: TokenIds, temperature: float) -> dict[tuple, float]:
    """Log-probabilities of the likeliest first tokens of an answer that is sampled at `temperature`."""
    request = replace(_short_request(plan, tokens), max_tokens=1, temperature=temperature)
    answer = served.answer_anew(request, top_logprobs=_tops(served, plan))
    return {(a.id, a.bytes): a.logprob for token in (answer.tokens or ())[:1] for a in token.top}


def _short_request(plan: Plan, tokens: TokenIds) -> Request:
    text = SHORT.format("")
    if plan.by_ids:
        return Request(token_ids=tuple(encode_prompt(tokens.tokenizer, text)), max_tokens=TOKENS)
    return Request(messages=({"role": "user", "content": text},), max_tokens=TOKENS)


def _tops(served: Served, plan: Plan) -> int:
    able = served.capabilities
    return min(able.completion_logprobs if plan.by_ids else able.chat_logprobs, MOST_TOPS)


def _other_words(served: Served, plan: Plan, tokens: TokenIds) -> str | None:
    """The first token that they do not agree on, in words; None where the endpoint names none."""
    able, most = served.capabilities, _tops(served, plan)
    if not most or not (able.ids or able.bytes):
        return None
    (answer,) = served.answer([_short_request(plan, tokens)], top_logprobs=most, announced=True)
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
