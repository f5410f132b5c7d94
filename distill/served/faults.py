"""Fault: what went wrong with one attempt, whether another may help, and whether it may have cost money."""

import datetime
import email.utils
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from distill.errors import DataError, RecipeError, StageFailed

RETRIED = {408, 409, 425, 429}
NOT_THERE = {404, 405, 501}
WITHHELD = "content_filter"
"""Azure's code where its filter refuses a prompt."""
OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
LONGEST_SAID = 300
"""Characters of a server's own words that a message repeats."""

_TOO_LONG = re.compile(
    r"context (size|length|window)|maximum context|context_length|exceed\w* (the )?(available )?context|"
    r"(prompt|input|request)[^.]{0,60} too (long|large)|longer than the maximum model length",
    re.IGNORECASE,
)


class Malformed(Exception):
    """A reply that arrived and is none: half of it, no JSON, or not what was asked for."""


class PromptsTooLong(DataError):
    """Some prompts do not fit the teacher's context; all the others are answered and kept.

    Attributes:
        indices: their places in the caller's list.
    """

    def __init__(self, message: str, indices: tuple[int, ...]) -> None:
        super().__init__(message)
        self.indices = indices


@dataclass(frozen=True)
class Fault:
    """One attempt that brought no usable reply."""

    kind: str
    """Status code, or one of timeout, connection, malformed: what the summary counts."""
    said: str
    """One line for the log, without the key."""
    status: int | None = None
    retry: bool = True
    wait_seconds: float | None = None
    """What the server asked for in Retry-After."""
    perhaps_billed: bool = False
    """The server may have done the work: the answer was cut off, or never came."""
    refused_connection: bool = False
    withheld: bool = False
    """The server's filter refuses this prompt, and no other one."""

    @property
    def too_long(self) -> bool:
        """The prompt does not fit the context."""
        return self.status in (400, 413, 422) and bool(_TOO_LONG.search(self.said))


class Refused(Exception):
    """The server refused a request for good; internal, becomes a message by `as_error`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.said)
        self.fault = fault


def status_fault(status: int, body: str, headers: Mapping[str, str]) -> Fault:
    """The fault of an HTTP status that is no success; `body` is scrubbed already."""
    said, code = _words(body)
    broke = status == 429 and any(word in f"{code} {said}" for word in OUT_OF_MONEY)
    retry = (status in RETRIED or status >= 500) and status not in NOT_THERE and not broke
    # A gateway's time-out says nothing about the server behind it, which may have finished.
    return Fault(
        kind=str(status),
        said=f"{status}: {said or 'without a word'}",
        status=status,
        retry=retry,
        wait_seconds=retry_after_seconds(headers),
        perhaps_billed=status in (408, 502, 504),
        withheld=status == 400 and WITHHELD in code.split(),
    )


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by Retry-After, given in seconds or as an HTTP date; None when it is absent or unreadable."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        until = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())


def as_error(fault: Fault, host: str, model: str, models: tuple[str, ...] | None) -> Exception:
    """What the user reads when a request was refused for good."""
    said = fault.said
    if fault.status in (401, 403):
        return RecipeError(
            f"{host} refuses the key ({said}). Needed: a key that may use {model!r}, in the environment variable "
            f"that the recipe names."
        )
    if fault.status in NOT_THERE:
        return RecipeError(f"{host} has no model {model!r} at this address ({said}). {list_of(models)}")
    if fault.too_long:
        return DataError(f"a prompt and its answer do not fit the context of {model!r} at {host} ({said}).")
    if fault.status is not None and 400 <= fault.status < 500 and fault.status != 429:
        return RecipeError(f"{host} does not accept the request ({said}).")
    return StageFailed(f"{host} does not answer any more ({said}). Everything answered so far is kept; run it again.")


def list_of(models: tuple[str, ...] | None) -> str:
    """One sentence that names the models an endpoint has."""
    if models is None:
        return "It does not tell which models it has; is base_url right, with /v1 at its end?"
    shown = ", ".join(models[:30]) + (f" and {len(models) - 30} more" if len(models) > 30 else "")
    return f"It has: {shown or 'none'}."


def _words(body: str) -> tuple[str, str]:
    """What an error body says, in one line, and its code."""
    try:
        content = json.loads(body)
    except ValueError:
        return " ".join(re.sub(r"<[^>]*>", " ", body).split())[:LONGEST_SAID], ""
    if isinstance(content, list) and content:  # Gemini's endpoint wraps its errors so
        content = content[0]
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return " ".join(str(error).split())[:LONGEST_SAID], ""
    said = error.get("message") or error.get("detail") or json.dumps(error)
    return " ".join(str(said).split())[:LONGEST_SAID], f"{error.get('code')} {error.get('type')}"
