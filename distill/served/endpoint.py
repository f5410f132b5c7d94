"""Endpoint: where a teacher is served, as whom to ask it, how fast and for how much."""

import base64
import json
import urllib.parse
from dataclasses import dataclass, field

from distill.errors import RecipeError

HIDDEN = "***"
SHORTEST_ECHO = 8
"""Characters of the key in a row that count as an echo of it; servers like to quote its beginning and its end."""

SHORTEST_SECRET = 16
"""Characters of a key that replies are searched for. Shorter ones are what servers without keys are given, such as
none, EMPTY or ollama, and an answer may hold that word."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible endpoint and how to use it; its `repr` never shows the key.

    Raises:
        RecipeError: an address that is none or carries secrets, a limit below its range, a cost limit without prices.
    """

    base_url: str
    """Up to and with the version, as in http://localhost:8000/v1."""
    model: str
    key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    """Requests in flight at once."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Of prompt and answer together, as providers count them."""
    timeout_seconds: float = 600.0
    """Time for one attempt, from the first byte sent to the last received."""
    max_attempts: int = 8
    price_per_million_prompt_tokens: float | None = None
    price_per_million_answer_tokens: float | None = None
    """In the currency of `max_cost`; whichever that is."""
    max_cost: float | None = None
    """A request that could take the total beyond this is not sent, over all runs with the same journal."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RecipeError(f"base_url {self.scrub(self.base_url)!r} is no address; needed: http(s)://HOST[:PORT]/v1")
        if parts.username or parts.password or parts.query:
            raise RecipeError(
                f"base_url of {parts.hostname} carries a user or a query, which would end up in logs; "
                f"needed: the bare address, and the key in its environment variable"
            )
        if self.key is not None and not (
            self.key.isascii() and self.key.isprintable() and self.key.split() == [self.key]
        ):
            raise RecipeError("the key is empty or holds blanks or signs that no key has; is it the right variable?")
        for name in ("concurrency", "max_attempts"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; needed: at least 1")
        for name in ("requests_per_minute", "tokens_per_minute", "timeout_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RecipeError(f"{name} is {value}; needed: more than 0")
        prices = (self.price_per_million_prompt_tokens, self.price_per_million_answer_tokens)
        if any(price is not None and not price >= 0 for price in (*prices, self.max_cost)):
            raise RecipeError(f"prices {prices} and max_cost {self.max_cost}: needed: none below 0")
        if self.max_cost is not None and None in prices:
            raise RecipeError(
                f"max_cost is {self.max_cost}, but the prices are {prices}; needed: both prices per million tokens "
                f"(0 for a server of your own), or no max_cost"
            )

    @property
    def has_prices(self) -> bool:
        return None not in (self.price_per_million_prompt_tokens, self.price_per_million_answer_tokens)

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Price of so many tokens; 0 where no prices are known."""
        prompt_price = self.price_per_million_prompt_tokens or 0.0
        answer_price = self.price_per_million_answer_tokens or 0.0
        return (prompt_tokens * prompt_price + answer_tokens * answer_price) / 1e6

    def scrub_reply(self, text: str) -> str:
        """A whole reply without the key; as it is where the key is a word that answers may hold."""
        key = self.key or ""
        return self.scrub(text) if len(key) >= SHORTEST_SECRET and key in text else text

    def scrub(self, text: str) -> str:
        """`text` without the key: as it is, quoted, encoded, or a piece of it."""
        key = self.key
        if not key:
            return text
        forms = {key, urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1], key.replace("/", "\\/")}
        forms.add(base64.b64encode(key.encode()).decode())
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, HIDDEN)
        if len(key) <= SHORTEST_ECHO:
            return text
        hidden = [False] * len(text)
        for start in range(len(key) - SHORTEST_ECHO + 1):
            piece = key[start : start + SHORTEST_ECHO]
            found = text.find(piece)
            while found >= 0:
                hidden[found : found + SHORTEST_ECHO] = [True] * SHORTEST_ECHO
                found = text.find(piece, found + 1)
        return "".join(_masked(text, hidden))


def _masked(text: str, hidden: list[bool]):
    for position, letter in enumerate(text):
        if not hidden[position]:
            yield letter
        elif position == 0 or not hidden[position - 1]:
            yield HIDDEN
