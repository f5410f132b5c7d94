"""What a model's name and its endpoint say of its terms where we hold no fact. An inference, and said as one.

Copies of published weights under another owner, and closed models at whatever endpoint sells them: OpenRouter's ids
(owner/model, a variant after a colon), Vertex AI's (google/gemini-…), Amazon Bedrock's (anthropic.claude-…). On Azure
the name of a deployment is its owner's choice, and the host alone says OpenAI.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

from distill.family.known import FAMILIES, published
from distill.family.licence import TERMS, Terms

CLOSED = {
    # not gpt-oss, whose weights are open, and no gpt2 or gpt-neo
    "openai": r"(openai/|azure/)?(gpt-[345]|chatgpt-|o[134](-|$)|text-davinci-)",
    "google-gemini": r"(google/|gemini/|vertex_ai/)?gemini-",
    "anthropic": r"(anthropic/)?(([a-z-]+\.)?anthropic\.)?claude-",
}
"""Id of a service's terms → how the names of its models begin, wherever they are sold."""
HOSTS = {"openai.azure.com": "openai", "cognitiveservices.azure.com": "openai"}
"""Hosts that sell one maker's models under names of their customers' choice."""

_PATHS = re.compile(r"^(publishers/|models/|openrouter/)+|/models(?=/)")
_HOW_STORED = re.compile(
    r"-(hf|gguf|gptq|awq|exl2|mlx|bnb|unsloth|fp8|fp16|bf16|nf4|int[48]|[48]-?bit|w\d+a\d+|q\d\w*|dynamic|quantized)$"
)


@dataclass(frozen=True)
class Inferred:
    """Terms, and why we take them to be those of the model."""

    terms: Terms
    why: str
    """Stands in "is, …, under": "by its name"."""


def terms_of_copy(model: str) -> Inferred | None:
    """The terms of the published weights that a model, by its name alone, is a copy of; quantised ones too."""
    found = _stems().get(_stem(model))
    if found is None:
        return None
    original, licence = found
    return Inferred(TERMS[licence], f"by its name a copy of {original}")


def terms_served(base_url: str, model: str) -> Inferred | None:
    """The terms of what an endpoint serves under a name, when that is a closed model's or a published one's."""
    host = (urlsplit(base_url).hostname or "").lower()
    name = _PATHS.sub("", model.strip("/").lower()).partition(":")[0].partition("@")[0]
    also = f" and beside what {host} itself asks" if _is_elsewhere(host) else ""
    for service, pattern in CLOSED.items():
        if re.match(pattern, name):
            return Inferred(TERMS[service], f"by its name{also}")
    if known := published(name):
        return Inferred(TERMS[known[1].licence], f"by its name {known[1].model}{also}")
    if copy := terms_of_copy(name):
        return copy
    for end, service in HOSTS.items():
        if host.endswith("." + end):
            return Inferred(TERMS[service], f"by its host{also}")
    return None


def _is_elsewhere(host: str) -> bool:
    """Whether somebody else may run it: neither this machine nor an address or a bare name of one's own network."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith((".local", ".internal", ".lan", ".svc"))


@cache
def _stems() -> dict[str, tuple[str, str]]:
    """Stem of a published checkpoint's name → (its hub id, its licence)."""
    return {_stem(p.model): (p.model, p.licence) for family in FAMILIES for p in family.published if p.on_hub}


def _stem(model: str) -> str:
    """The name without its owner, without what says how the weights are stored, and without Meta's own name."""
    stem = model.strip("/").rpartition("/")[2].lower().partition(":")[0].removeprefix("meta-")
    while (shorter := _HOW_STORED.sub("", stem)) != stem:
        stem = shorter
    return stem
