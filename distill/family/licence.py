"""TERMS: every licence and every service's terms that we know, and how one is found.

Facts with their source, and not legal advice. docs/licences.md is this table as a page.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from distill.family._llama_terms import LLAMA
from distill.family._model_terms import MODELS
from distill.family._service_terms import SERVICES
from distill.family._terms import Terms

__all__ = ["TERMS", "Terms", "in_card", "terms_at", "terms_called", "terms_of_folder"]

TERMS: Mapping[str, Terms] = {terms.id: terms for terms in (*MODELS, *LLAMA, *SERVICES)}
"""By their id, which is the hub's name of the licence where it has one."""
_AND = "-and-"
"""Between the names of a model's licences, where it is under several."""


def terms_at(address: str) -> Terms | None:
    """The terms of the service at an address, such as `teacher.base_url`."""
    host = (urlsplit(address).hostname or "").lower()
    return next((t for t in TERMS.values() if any(host == h or host.endswith("." + h) for h in t.hosts)), None)


def terms_called(license: str, license_name: str = "") -> Terms | None:
    """The terms that a model card means by its `license` and, where that is "other", its `license_name`."""
    named = license_name.lower() if license.lower() == "other" else license.lower()
    found = (t for t in TERMS.values() if named in {t.id, t.hub_name if t.hub == "other" else t.hub})
    return next(found, None) if named else None


def in_card(every: Sequence[Terms]) -> dict[str, str]:
    """What the card of a model under all of these says: `license`, and where hubs list none, its name and a link."""
    if not every:
        return {}
    if len(every) == 1 and every[0].hub != "other":
        return {"license": every[0].hub}
    name = _AND.join(terms.hub_name or terms.id for terms in every)
    return {"license": "other", "license_name": name, "license_link": every[-1].url}


def terms_of_folder(folder: Path) -> tuple[Terms, ...]:
    """Every licence that the model card in a checkpoint folder names; none where one of them is not known.

    A folder that was downloaded whole from a hub has a card, and so has a package of ours.
    """
    card = folder / "README.md"
    if not card.is_file():
        return ()
    text = card.read_text(encoding="utf-8", errors="replace")
    matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    said = dict(re.findall(r"^(license|license_name):[ \t]*['\"]?([\w.-]+)", matter[1] if matter else "", re.MULTILINE))
    names = said.get("license_name", "").split(_AND)
    found = [terms_called(said.get("license", ""), name) for name in names]
    return tuple(terms for terms in found if terms) if all(found) else ()
