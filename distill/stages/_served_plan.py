"""plan(): what is asked of an endpoint, given what it can do and what the loss needs."""

import os
from dataclasses import dataclass

from distill.errors import RecipeError, TargetMismatch
from distill.served.probe import Capabilities
from distill.stages.teach import Wanted
from distill.targets import Layout
from distill.teacher._served import Served as Option
from distill.teacher.server import Server

AMONG = 5
"""Alternatives among which the other ends of an answer are looked for, where a teacher has several; all endpoints give
so many. One that is not among them is less likely than any of them."""


@dataclass(frozen=True)
class Plan:
    """How an endpoint is used. One and the same for the whole store."""

    by_ids: bool
    """Prompts are sent as token ids, as training renders them; else as chat messages, which the server renders."""
    tops: int
    """Alternatives asked for with each token of an answer."""
    from_answers: bool
    """Targets come with the answers, where the server tells all their tokens."""
    can_score: bool
    """Targets of given rows can be had."""
    score_tops: int
    layout: Layout | None
    context: int | None
    """Most tokens of a row."""


def plan(
    teacher: Option,
    wanted: Wanted,
    able: Capabilities,
    where: str,
    vocab_size: int | None,
    *,
    given_rows: bool,
    num_ends: int = 1,
) -> Plan:
    """What this endpoint is asked for. `given_rows`: some rows that need targets are not its own answers.

    `num_ends`: token ids that may end an answer and count alike.

    Raises:
        RecipeError: it cannot give what the loss needs; the message says what it can do.
        TargetMismatch: the loss compares at another temperature than endpoints answer for.
    """
    # ids that nothing can be held against are not trusted with a prompt where there is chat
    verifiable = able.token_prompts and (able.ids or able.bytes or not able.chat)
    by_ids = vocab_size is not None and verifiable
    if not by_ids and not able.chat and teacher.responses == "generate":
        raise RecipeError(
            f"{where} has no chat endpoint; its prompts must be token ids, which need teacher.tokenizer=… (the "
            f"teacher's). It can do: {able}."
        )
    given = able.completion_logprobs if by_ids else able.chat_logprobs
    can_score = able.scoring is not None and vocab_size is not None
    # a whole row is sent to be scored, and one token more is generated
    context = able.context_tokens
    if context is not None and can_score and able.scoring != "stepwise" and wanted.kind is not None:
        context -= 1
    if wanted.kind is None:
        return Plan(by_ids, min(given, 1) if able.ids and by_ids else 0, False, False, 0, None, context)
    refuse_targets(teacher, wanted.kind, wanted.temperature, "teacher")
    assert vocab_size is not None
    from_answers = bool(given) and (able.ids or able.bytes) and teacher.responses == "generate"
    from_answers = from_answers and not wanted.prompt_targets
    needs_scores = wanted.prompt_targets or given_rows or not from_answers
    if needs_scores and not can_score:
        raise RecipeError(f"{where}: {_what_is_missing(wanted, bool(given), from_answers)} It can do: {able}.")
    kept = min(teacher.top_k, vocab_size, given if from_answers else vocab_size)
    if needs_scores:
        kept = min(kept, able.score_logprobs)
    can_score = can_score and able.score_logprobs >= (kept if wanted.kind == "top_k" else 1)
    layout = Layout("top_k", vocab_size, kept) if wanted.kind == "top_k" else Layout("next", vocab_size)
    most = AMONG if num_ends > 1 else 1
    tops, score_tops = (kept, kept) if wanted.kind == "top_k" else (min(most, given), min(most, able.score_logprobs))
    return Plan(by_ids, tops if from_answers else 0, from_answers, can_score, score_tops, layout, context)


def refuse_targets(teacher: Option, kind: str | None, temperature: float, key: str) -> None:
    """Raises when targets of this kind cannot be had from any endpoint; `key` is how the recipe calls the teacher.

    Raises:
        RecipeError: nobody says which token ids the log-probabilities are of.
        TargetMismatch: the loss compares at another temperature than endpoints answer for.
    """
    if kind is not None and teacher.tokenizer_from is None:
        raise RecipeError(
            f"{key}.tokenizer: is needed, because this loss compares the student with log-probabilities, which are of "
            "token ids. Name the teacher's tokenizer (a folder or a hub id), or use loss=text."
        )
    if kind == "top_k" and temperature != 1.0:
        raise TargetMismatch(
            f"loss.temperature={temperature}: a served teacher gives log-probabilities at temperature 1, and what it "
            "does not give cannot be re-tempered. Use loss.temperature=1."
        )


def key_of(teacher: Server, key: str = "teacher") -> str | None:
    """The endpoint's key from the environment. Raises RecipeError where the variable that is named does not exist."""
    if teacher.key_env is None:
        return None
    found = os.environ.get(teacher.key_env, "").strip()
    if not found:
        raise RecipeError(
            f"{key}.key_env={teacher.key_env}: there is no such environment variable, or it is empty. Put the key of "
            f"{teacher.base_url} there, or leave {key}.key_env out for a server without keys."
        )
    return found


def _what_is_missing(wanted: Wanted, given: bool, from_answers: bool) -> str:
    if wanted.prompt_targets and given:
        return (
            "it gives log-probabilities of the tokens that it says alone, and training.prompt_weight asks for those of "
            "the prompts. Use training.prompt_weight=0, or loss=text."
        )
    if not from_answers and not given:
        return "it gives no log-probabilities, and this loss needs them. Use loss=text, which needs the answers alone."
    return (
        "it cannot score text that it did not write (the data's own answers, or the student's), and this loss needs "
        "that. Use teacher.responses=generate without keep_answers and training.on_policy=0, or loss=text."
    )
