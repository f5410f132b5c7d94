"""The output file of a batch of requests, as OpenAI, vLLM's `run-batch` and others write it: half the price of asking.

`{"custom_id": "a", "response": {"status_code": 200, "body": {"choices": [{"message": {"role": "assistant", "content":
"4"}, "finish_reason": "stop"}]}}, "error": null}`, in any order. The prompts are in the file that was sent alone:
`{"custom_id": "a", "body": {"messages": [...]}}`.

Source: platform.openai.com/docs/guides/batch; vllm-project/vllm, vllm/entrypoints/openai/run_batch.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

from distill.answer_file.given import GivenAnswer, Prompt, field_of, turns_of
from distill.data._rows import read_rows, refuse_halves
from distill.errors import DataError
from distill.teacher.file import File


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this layout."""
    response = row.get("response")
    return "custom_id" in row and (response is None or isinstance(response, dict))


def reader(teacher: File) -> Callable[[Mapping[str, Any], str], GivenAnswer | None]:
    """Turns a row into an answer, of several choices the first; None where there is none, as of a failed request."""
    prompts: dict[str, Prompt] = {}

    def read(row: Mapping[str, Any], where: str) -> GivenAnswer | None:
        if not prompts:
            prompts.update(_prompts(teacher, where))
        name = str(field_of(row, "custom_id", where))
        if name not in prompts:
            raise DataError(f"{where}: no request {name!r} in teacher.requests={teacher.requests}; give the file sent.")
        choice = _first_choice(row)
        text = _text(choice)
        if text is None or choice.get("finish_reason") == "content_filter":
            return None
        return GivenAnswer(where, prompts[name], text, cut=choice.get("finish_reason") == "length")

    return read


def _prompts(teacher: File, where: str) -> dict[str, Prompt]:
    """custom_id → prompt of every request that was sent."""
    if teacher.requests is None:
        raise DataError(
            f"{where}: the output of a batch, whose prompts are in the file that was sent. Name it: "
            "teacher.requests=FILE."
        )
    prompts: dict[str, Prompt] = {}
    for place, row in read_rows(teacher.requests, "", asked_by="teacher.requests"):
        refuse_halves(row, place)
        name, body = str(field_of(row, "custom_id", place)), row.get("body")
        if not isinstance(body, dict):
            raise DataError(f"{place}: no request: {{'custom_id': …, 'body': {{'messages': […]}}}} is needed.")
        if name in prompts:
            raise DataError(f"{place}: a second request {name!r}; nobody can tell whose answer is whose.")
        prompts[name] = body["prompt"] if isinstance(body.get("prompt"), str) else turns_of(body, "messages", place)
    return prompts


def _first_choice(row: Mapping[str, Any]) -> Mapping[str, Any]:
    body = (row.get("response") or {}).get("body")
    choices = body.get("choices") if isinstance(body, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _text(choice: Mapping[str, Any]) -> str | None:
    """What a chat's message or a completion says; None for nothing, as of a refusal or a call of a tool."""
    message = choice.get("message")
    said = message.get("content") if isinstance(message, dict) else choice.get("text")
    return said if isinstance(said, str) and said.strip() else None
