"""`teacher=server`: any OpenAI-compatible endpoint: OpenAI, Azure, vLLM, SGLang, llama.cpp, Gemini's compatible one."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT
from distill.teacher._served import Served

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}\Z")


def _variable(name: str) -> str:
    if not _VARIABLE.match(name):
        # what was given is not repeated: it may be the key itself
        raise ValueError(
            "needs the NAME of the environment variable that holds the key (capitals, digits and _), such as "
            "OPENAI_API_KEY; never the key itself"
        )
    return name


def _address(url: str) -> str:
    if not re.match(r"https?://[^/?#@\s]+(/[^?#@\s]*)?\Z", url):
        raise ValueError(
            "needs the bare address of an endpoint up to its version, http(s)://HOST[:PORT]/v1, without user or query"
        )
    return url


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Server(Served):
    """A served teacher. What it can do is found out at the start; what it said is never paid for twice."""

    kind: Literal["server"]
    base_url: Annotated[str, AfterValidator(_address)]
    """Up to and with the version, as in http://localhost:8000/v1."""
    model: Annotated[str, Field(min_length=1)]
    """Its name at the endpoint."""
    key_env: Annotated[str, AfterValidator(_variable)] | None = None
    """Name of the environment variable that holds the key; None: no key is sent. The key is written nowhere."""
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0)] | None = None
    price_per_million_answer_tokens: Annotated[float, Field(ge=0)] | None = None
    """In the currency of `max_cost`."""
    max_cost: Annotated[float, Field(ge=0)] | None = None
    """A request that could take the total beyond this is not sent, over all runs that ask this model here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.startswith("bundled:"):
            raise ValueError(f"model={self.model!r} is a checkpoint of ours; give the name of a model at the endpoint")
        if self.max_cost is not None and None in (
            self.price_per_million_prompt_tokens,
            self.price_per_million_answer_tokens,
        ):
            raise ValueError(
                f"max_cost={self.max_cost:g} needs both price_per_million_prompt_tokens and "
                "price_per_million_answer_tokens"
            )

    def _decides_nothing(self) -> tuple[str, ...]:
        prices = ("price_per_million_prompt_tokens", "price_per_million_answer_tokens", "max_cost")
        return ("key_env", "tokenizer", *prices)
