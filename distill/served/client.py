"""Served: a teacher behind an OpenAI-compatible endpoint; asynchronous inside, plain calls outside."""

import asyncio
import collections
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import DataError, DistillError, RecipeError
from distill.served._asker import Asker, Stopped
from distill.served._replies import Usage, checked, read_answer
from distill.served.answer import Alternative, Answer, Estimate, Request, answer_from_json, answer_to_json
from distill.served.endpoint import Endpoint
from distill.served.faults import PromptsTooLong, Refused, as_error
from distill.served.journal import Journal, Spent
from distill.served.probe import PLAIN_SAMPLING, Capabilities, probe
from distill.served.scoring import score, score_key, tops_from_json

_Result = TypeVar("_Result")


class Served:
    """A served teacher; use it in a `with` statement. What it can do is found out on entering.

    Args:
        endpoint: where and how to ask.
        journal: file of answers and costs; what is in it is never asked again, whichever run asked it.
        log: takes one line for the logbook at a time, never with the key in it.

    Raises:
        RecipeError: the endpoint cannot be reached, refuses the key, or does not have the model.
    """

    def __init__(self, endpoint: Endpoint, journal: Path, log: Callable[[str], None]) -> None:
        self.endpoint = endpoint
        self._journal = Journal(journal, log)
        self._log = log

    def __enter__(self) -> "Served":
        self._journal.__enter__()
        self._runner = asyncio.Runner()
        try:
            self._asker = self._runner.run(self._start())
            self.capabilities: Capabilities = self._call(probe(self._asker))
        except BaseException:
            self.__exit__()
            raise
        self._asker.log(f"{self.endpoint.model} at {self.endpoint.base_url}: {self.capabilities}")
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if hasattr(self, "_asker"):
                self._runner.run(self._asker.close())
        finally:
            self._runner.close()
            self._journal.__exit__()

    @property
    def spent(self) -> Spent:
        """Tokens and money over all runs with this journal."""
        return self._journal.spent

    def estimate(self, requests: Sequence[Request], *, top_logprobs: int = 0) -> Estimate:
        """What asking for the missing answers takes, at most; sends nothing."""
        by_key = {request.key(self.endpoint.model, top_logprobs): request for request in requests}
        missing = [by_key[key] for key in self._journal.missing(by_key)]
        prompt_tokens = sum(self._prompt_at_most(request) for request in missing)
        answer_tokens = sum(request.max_tokens for request in missing)
        cost = self.endpoint.cost(prompt_tokens, answer_tokens) if self.endpoint.has_prices else None
        return Estimate(
            num_requests=len(by_key),
            num_missing=len(missing),
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            cost=cost,
        )

    def answer(
        self,
        requests: Sequence[Request],
        *,
        top_logprobs: int = 0,
        progress: Callable[[int], None] = lambda units: None,
        announced: bool = False,
    ) -> list[Answer]:
        """The answer to every request, in the caller's order; only those that the journal lacks are asked for.

        Equal requests are one; ask for several answers to a prompt by numbering them in `sample`.

        Args:
            top_logprobs: alternatives to return for each token; 0 for text alone.
            progress: called with the number of requests done since.
            announced: the caller has said what this takes; the estimate is not logged again.

        Raises:
            RecipeError: the endpoint cannot do what is asked.
            PromptsTooLong: some prompts do not fit the context; all others are answered and kept.
            StageFailed: the server stopped answering, or the next request could pass `max_cost`; the answers so far
                are kept, and the same call goes on.
        """
        self._refuse(requests, top_logprobs)
        keys = [request.key(self.endpoint.model, top_logprobs) for request in requests]
        by_key = dict(zip(keys, requests, strict=True))
        kept = self._kept(by_key, answer_from_json)
        if not announced:
            self._asker.log(str(self.estimate(requests, top_logprobs=top_logprobs)))
        asked = self._all(keys, kept, lambda key: self._ask(by_key[key], top_logprobs, key), progress)
        found = kept | asked
        answers = [found[key] for key in keys]
        self._sum_up(answers, len(asked), top_logprobs)
        return answers

    def score(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[range],
        top_logprobs: int,
        *,
        progress: Callable[[int], None] = lambda units: None,
    ) -> list[list[tuple[Alternative, ...]]]:
        """For each row and each wanted position p the likeliest tokens after row[: p + 1], the likeliest first.

        The token that really follows is always among them, as one more where it is not one of the `top_logprobs`.

        Args:
            rows: token ids of the teacher's own tokenizer, taken as they are.
            positions: for each row the positions to score, each in [0, len(row)).

        Raises: as `answer` does.
        """
        rows = [[int(token) for token in row] for row in rows]
        self._refuse_scores(rows, positions, top_logprobs)
        keys = [
            score_key(self.endpoint.model, row, wanted, top_logprobs)
            for row, wanted in zip(rows, positions, strict=True)
        ]
        by_key = dict(zip(keys, zip(rows, positions, strict=True), strict=True))
        kept = self._kept(by_key, tops_from_json)

        def ask(key: str) -> Awaitable[list[tuple[Alternative, ...]]]:
            return score(self._asker, self.capabilities, *by_key[key], top_logprobs, key)

        asked = self._all(keys, kept, ask, progress)
        self._asker.log(f"{len(rows)} rows scored, {len(asked)} of them now; {self._so_far()}")
        found = kept | asked
        return [found[key] for key in keys]

    def answer_anew(self, request: Request, *, top_logprobs: int) -> Answer:
        """The answer to one request as the endpoint gives it now; neither looked up in the journal nor kept there.

        Raises: as `answer` does.
        """
        self._refuse([request], top_logprobs)
        return self._call(self._ask(request, top_logprobs, None))

    async def _start(self) -> Asker:
        return Asker(self.endpoint, self._journal, self._log)

    async def _ask(self, request: Request, top_logprobs: int, key: str | None) -> Answer:
        body: dict[str, Any] = {"temperature": request.temperature}
        if self.capabilities.extensions:
            body |= {**PLAIN_SAMPLING, "return_tokens_as_token_ids": True}
        if request.sent_seed is not None:
            body["seed"] = request.sent_seed
        if request.messages is not None:
            path = "/chat/completions"
            body |= {"messages": list(request.messages), self.capabilities.limit_name: request.max_tokens}
            body |= {"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else {}
        else:
            path = "/completions"
            body |= {"prompt": list(request.token_ids or ()), "max_tokens": request.max_tokens}
            body |= {"logprobs": top_logprobs} if top_logprobs else {}

        most = Usage(self._prompt_at_most(request), request.max_tokens)
        keep = None if key is None else lambda answer: (key, answer_to_json(answer))
        name = f"request {(key or request.key(self.endpoint.model, top_logprobs))[:8]}"
        try:
            return await self._asker.post(path, body, checked(read_answer), most=most, name=name, keep=keep)
        except Refused as refused:
            if not refused.fault.withheld:
                raise
        return Answer("", "filtered", None, 0, 0, self.endpoint.model, None)

    def _prompt_at_most(self, request: Request) -> int:
        return request.prompt_tokens_at_most(self.capabilities.template_tokens)

    def _all(
        self,
        keys: Sequence[str],
        kept: Mapping[str, _Result],
        ask: Callable[[str], Awaitable[_Result]],
        progress: Callable[[int], None],
    ) -> dict[str, _Result]:
        """The results of all keys that are not kept; after a failure the rest is left, those in flight are finished."""
        times = collections.Counter(keys)
        missing = [key for key in times if key not in kept]
        progress(len(keys) - sum(times[key] for key in missing))

        async def ask_and_tell(key: str) -> _Result:
            result = await ask(key)
            progress(times[key])
            return result

        return self._call(self._run_all(missing, ask_and_tell, keys))

    async def _run_all(self, missing, ask, keys) -> dict[str, Any]:
        found: dict[str, Any] = {}
        too_long: dict[str, Exception] = {}
        failures: list[Exception] = []
        waiting = iter(missing)

        async def work() -> None:
            for key in waiting:
                if self._asker.brake.stopped:
                    return
                try:
                    found[key] = await ask(key)
                except Stopped:
                    return
                except Refused as refused:
                    error = as_error(
                        refused.fault, self.endpoint.base_url, self.endpoint.model, self.capabilities.models
                    )
                    if refused.fault.too_long:
                        too_long[key] = error
                        continue
                    failures.append(error)
                except DistillError as error:
                    failures.append(error)
                else:
                    continue
                await self._asker.stop()
                return

        self._asker.brake.release()
        await asyncio.gather(*(work() for _ in range(min(self.endpoint.concurrency, len(missing)))))
        if failures:
            raise _with_rest(failures[0], len(missing) - len(found) - len(too_long), len(set(keys)))
        if too_long:
            indices = tuple(index for index, key in enumerate(keys) if key in too_long)
            first = str(too_long[keys[indices[0]]])
            raise PromptsTooLong(
                f"{len(indices)} of {len(keys)} requests, the first being number {indices[0]}: {first}"
                f" All others are answered and kept; shorten these or leave them out.",
                indices,
            )
        return found

    def _call(self, coroutine) -> Any:
        """Runs a coroutine; errors leave without their history, which holds what the server said unscrubbed."""
        try:
            return self._runner.run(coroutine)
        except Refused as refused:
            error: Exception = as_error(refused.fault, self.endpoint.base_url, self.endpoint.model, None)
        except DistillError as found:
            error = found
        raise error

    def _kept(self, keys: Iterable[str], decode: Callable[[Mapping[str, Any]], _Result]) -> dict[str, _Result]:
        contents = ((key, self._journal.get(key)) for key in keys)
        return {key: decode(content) for key, content in contents if content is not None}

    def _sum_up(self, answers: Sequence[Answer], num_asked: int, top_logprobs: int) -> None:
        line = f"{len(answers)} answers, {num_asked} of them asked for now; {self._so_far()}"
        notes = {
            "are empty": sum(not answer.text for answer in answers),
            "were withheld by the server's filter": sum(answer.finish == "filtered" for answer in answers),
            "came without a log-probability for every token": sum(
                bool(top_logprobs) and answer.tokens is None for answer in answers
            ),
        }
        line += "".join(f"; {count} {what}" for what, count in notes.items() if count)
        self._asker.log(line)

    def _so_far(self) -> str:
        spent, faults = self.spent, self._asker.faults
        kinds = ", ".join(f"{count} × {kind}" for kind, count in faults.most_common())
        met = f"{faults.total()} faults since the start ({kinds}); " if faults else ""
        money = f", {spent.cost:.6g} spent" if self.endpoint.has_prices else ""
        money += f" and perhaps {spent.perhaps:.6g} for replies that were cut off" if spent.perhaps else ""
        return f"{met}in all {spent.prompt_tokens:,} prompt tokens and {spent.answer_tokens:,} answer tokens{money}"

    def _refuse(self, requests: Sequence[Request], top_logprobs: int) -> None:
        """Says before the first request what this endpoint cannot do."""
        able, where = self.capabilities, f"{self.endpoint.model} at {self.endpoint.base_url}"
        for request in requests:
            chat = request.messages is not None
            if chat and not able.chat:
                raise RecipeError(f"{where} has no chat endpoint; needed: prompts as token ids.")
            if not chat and not able.token_prompts:
                raise RecipeError(f"{where} takes no token ids as prompts; needed: chat messages.")
            most = able.chat_logprobs if chat else able.completion_logprobs
            if top_logprobs > most:
                raise RecipeError(_too_few(where, most, top_logprobs))

    def _refuse_scores(self, rows, positions: Sequence[range], top_logprobs: int) -> None:
        able, where = self.capabilities, f"{self.endpoint.model} at {self.endpoint.base_url}"
        if able.scoring is None:
            raise RecipeError(f"{where} cannot score rows ({able}). Take its own answers' log-probabilities, or text.")
        if not 1 <= top_logprobs <= able.score_logprobs:
            raise RecipeError(_too_few(where, able.score_logprobs, top_logprobs))
        for number, (row, wanted) in enumerate(zip(rows, positions, strict=True)):
            if wanted and (min(wanted) < 0 or max(wanted) >= len(row)):
                raise DataError(f"row {number} has {len(row)} tokens, but {wanted} was asked for")
            if able.context_tokens is not None and wanted and max(wanted) + 2 > able.context_tokens:
                raise DataError(
                    f"row {number} needs room for {max(wanted) + 2} tokens, but {where} has {able.context_tokens}"
                )


def _too_few(where: str, most: int, wanted: int) -> str:
    if not most:
        return f"{where} gives no log-probabilities, and {wanted} per token are wanted. Distil from text: loss=text."
    return f"{where} gives 1 to {most} log-probabilities per token, and {wanted} are wanted."


def _with_rest(error: Exception, left: int, total: int) -> Exception:
    """The same error, with what remains to be asked."""
    return type(error)(f"{error} {left} of {total} requests remain.")
