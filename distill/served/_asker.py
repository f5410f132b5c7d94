"""One request, asked until it is answered: retries, limits, costs, and a line in the log for every fault."""

import asyncio
import collections
import json
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from distill.errors import StageFailed
from distill.served._pace import Brake, Pace
from distill.served._replies import Usage, usage_of
from distill.served.endpoint import Endpoint
from distill.served.faults import Fault, Malformed, Refused, status_fault
from distill.served.journal import Journal

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
LONGEST_RETRY_AFTER_SECONDS = 600.0
"""A server that asks for more is left alone: the run stops and says so."""
FIRST_CONTACT_ATTEMPTS = 3
"""Connections refused before anything was ever heard: the address is wrong, and waiting does not mend it."""
LINES_PER_KIND = 100
"""Faults of one kind that get a line of their own; the rest are counted in the summary."""

_Result = TypeVar("_Result")


class Stopped(Exception):
    """Something else ended the run while this request waited; internal."""


class Asker:
    """Sends requests to one endpoint. All of them share its pace, its brake, its purse and its counts of faults."""

    def __init__(self, endpoint: Endpoint, journal: Journal, log: Callable[[str], None]) -> None:
        self.endpoint, self.journal = endpoint, journal
        self.faults: collections.Counter[str] = collections.Counter()
        self.brake = Brake()
        self.log = lambda line: log(endpoint.scrub(line))
        self._requests = Pace(endpoint.requests_per_minute)
        self._tokens = Pace(endpoint.tokens_per_minute)
        self._purse = asyncio.Condition()
        self._num_priced = 0
        self._reached = False
        self._random = random.Random()
        self._client = _client(endpoint)

    async def close(self) -> None:
        await self._client.close()

    async def stop(self) -> None:
        """Sends nothing new; requests in flight come to their end, and whoever waits is told."""
        self.brake.stop()
        async with self._purse:
            self._purse.notify_all()

    async def get(self, path: str) -> Any:
        """The JSON at `path`; costs nothing and keeps nothing."""
        return await self._ask(path, None, Usage(0, 0), lambda reply: reply, f"GET {path}", None)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], _Result],
        *,
        most: Usage,
        name: str,
        keep: Callable[[_Result], tuple[str, Mapping[str, Any]]] | None = None,
    ) -> _Result:
        """What `read` makes of the reply to `body`, after as many attempts as it takes.

        Args:
            read: raises Malformed for a reply that must be asked for again.
            most: tokens of prompt and answer that cannot be exceeded, for the limits and for `max_cost`.
            name: what the log calls this request.
            keep: key and content for the journal, written in one transaction with the cost.

        Raises:
            Refused: the server will not answer this, or did not in `max_attempts` attempts.
            StageFailed: `max_cost` could be passed.
            Stopped: another request has ended the run.
        """
        return await self._ask(path, {"model": self.endpoint.model, **body}, most, read, name, keep)

    async def _ask(self, path, body, most: Usage, read, name: str, keep) -> Any:
        attempt = 0
        while True:
            attempt += 1
            await self._wait_for_turn(most)
            reservation = await self._reserve(most)
            try:
                found, usage = await self._attempt(path, body, read, most)
                if not isinstance(found, Fault):
                    self._settle(reservation, usage, most, None if keep is None else keep(found), paid=body is not None)
                    return found
                if not found.perhaps_billed:
                    self._tokens.give_back(most.prompt_tokens + most.answer_tokens)
                    if reservation is not None:
                        self.journal.release(reservation)
            finally:
                await self._wake()
            wait_seconds = self._judge(found, attempt, name)
            if found.wait_seconds is not None:
                self.brake.pause(wait_seconds)  # a busy server wants less from all of us
            await self.brake.wait(wait_seconds)

    async def _attempt(self, path: str, body, read, most: Usage) -> tuple[Any, Usage]:
        """(what was read, what it used), or (the fault, anything). No exception of the client survives this: they
        carry the key."""
        import openai

        try:
            async with asyncio.timeout(self.endpoint.timeout_seconds):
                if body is None:
                    text = await self._client.get(path, cast_to=str)
                else:
                    text = await self._client.post(path, cast_to=str, body=body)
        except openai.APIStatusError as error:
            # The body of an error may be cut off as well; what is there is enough.
            return status_fault(error.status_code, self._body(error), error.response.headers), most
        except (openai.APITimeoutError, TimeoutError):
            said = f"no reply within {self.endpoint.timeout_seconds:g} s"
            return Fault("timeout", said, perhaps_billed=True), most
        except openai.APIConnectionError as error:
            refused = "Connect" in type(error.__cause__).__name__
            said = self.endpoint.scrub(f"{'no connection' if refused else 'connection lost'}: {_reason(error)}")
            return Fault("connection", said, perhaps_billed=not refused, refused_connection=refused), most
        except openai.OpenAIError as error:
            return Fault("client", self.endpoint.scrub(f"{type(error).__name__}: {_reason(error)}"), retry=False), most
        try:
            reply = json.loads(self.endpoint.scrub_reply(text))
            self._reached = True
            if body is None:
                return reply, most
            return read(reply), _usage(reply, most)
        except Malformed as problem:
            said = f"malformed reply: {problem}"
        except ValueError:
            said = "malformed reply: " + ("half of a JSON or none" if text.strip() else "an empty body")
        return Fault("malformed", self.endpoint.scrub(said), perhaps_billed=True), most

    def _body(self, error: Any) -> str:
        try:
            return self.endpoint.scrub(error.response.text)
        except Exception:  # httpx's own, of either major version: the body was never read
            return ""

    def _judge(self, fault: Fault, attempt: int, name: str) -> float:
        """Seconds to wait before the next attempt; raises Refused when there is none."""
        self.faults[fault.kind] += 1
        self._reached = self._reached or not fault.refused_connection
        patience = (
            self.endpoint.max_attempts if self._reached else min(FIRST_CONTACT_ATTEMPTS, self.endpoint.max_attempts)
        )
        last = not fault.retry or attempt >= patience
        wait_seconds = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1)) * self._random.uniform(0.5, 1)
        why = ""
        if fault.wait_seconds is not None and not last:
            if fault.wait_seconds > LONGEST_RETRY_AFTER_SECONDS:
                last = True
            wait_seconds, why = fault.wait_seconds + 0.1 * wait_seconds, ", as the server asked"
        count = self.faults[fault.kind]
        if count <= LINES_PER_KIND:
            then = "given up" if last else f"again in {wait_seconds:.2f} s{why}"
            more = f" (faults of kind {fault.kind} are only counted from here on)" if count == LINES_PER_KIND else ""
            self.log(f"{name}, attempt {attempt} of {patience}: {fault.said}; {then}{more}")
        if last:
            raise Refused(fault)
        return wait_seconds

    async def _wait_for_turn(self, most: Usage) -> None:
        await self.brake.wait(self._requests.take(1))
        await self.brake.wait(self._tokens.take(most.prompt_tokens + most.answer_tokens))
        if self.brake.stopped:
            raise Stopped

    async def _reserve(self, most: Usage) -> int | None:
        """Sets money aside for a request; waits for those in flight when it is only they who keep it."""
        if self.endpoint.max_cost is None:
            return None
        cost = self.endpoint.cost(most.prompt_tokens, most.answer_tokens)
        async with self._purse:
            while self._money_left() < cost:
                if self._num_priced == 0:
                    raise StageFailed(self._out_of_money(cost))
                await self._purse.wait()
                if self.brake.stopped:
                    raise Stopped
            self._num_priced += 1
            return self.journal.reserve(most.prompt_tokens, most.answer_tokens, cost)

    async def _wake(self) -> None:
        if self.endpoint.max_cost is not None:
            async with self._purse:
                self._num_priced -= 1
                self._purse.notify_all()

    def _settle(self, reservation, usage: Usage, most: Usage, keep, *, paid: bool) -> None:
        self._tokens.give_back(most.prompt_tokens + most.answer_tokens - usage.prompt_tokens - usage.answer_tokens)
        if not paid:
            if reservation is not None:
                self.journal.release(reservation)
            return
        cost = self.endpoint.cost(usage.prompt_tokens, usage.answer_tokens)
        self.journal.settle(reservation, usage.prompt_tokens, usage.answer_tokens, cost, keep=keep)

    def _money_left(self) -> float:
        assert self.endpoint.max_cost is not None
        return self.endpoint.max_cost - self.journal.spent.cost - self.journal.spent.perhaps

    def _out_of_money(self, cost: float) -> str:
        spent = self.journal.spent
        perhaps = f" and perhaps {spent.perhaps:.6g} for replies that were cut off" if spent.perhaps else ""
        return (
            f"max_cost is {self.endpoint.max_cost:g}: {spent.cost:.6g} is spent{perhaps}, and the next request may "
            f"cost up to {cost:.6g}. Everything answered so far is kept; run it again with a larger max_cost to go on."
        )


def _client(endpoint: Endpoint) -> "AsyncOpenAI":
    import openai

    # A key must be given, or the library takes OPENAI_API_KEY and sends it to whoever serves here.
    client = openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.key or "none",
        max_retries=0,
        timeout=endpoint.timeout_seconds,
        # a proxy of the environment must not see what a server on this machine is asked, nor its key
        http_client=openai.DefaultAsyncHttpxClient(trust_env=not _is_here(endpoint.base_url)),
    )
    client.organization = client.project = None  # from the environment too, and meant for OpenAI alone
    return client


def _is_here(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _usage(reply: Mapping[str, Any], most: Usage) -> Usage:
    """What the server counted, or the most it can have been where it does not count."""
    try:
        return usage_of(reply)
    except (KeyError, TypeError, ValueError, AttributeError):
        return most


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split()) or type(cause).__name__
