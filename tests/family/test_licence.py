"""The table of licences: complete, found by every name it goes by, and the same in docs/licences.md."""

import datetime
import importlib.metadata
from pathlib import Path

import pytest

from distill.family.known import FAMILIES
from distill.family.licence import TERMS, Terms, in_card, terms_at, terms_called, terms_of_folder
from tests.conftest import ROOT

PUBLISHED = [pytest.param(p, id=p.model) for family in FAMILIES for p in family.published]
OWN_WORDS = {
    # licence → what its text says of outputs, decided by reading it, apart from the table
    "free": {"mit", "mit-modified", "apache-2.0"},
    "conditions": {"llama3.1", "llama3.2", "llama3.3", "qwen"},
    "passed_on": {"bigscience-bloom-rail-1.0", "gemma"},
    "non_commercial": {"opt-175b", "llama-1", "qwen-research", "mistral-research"},
    "own_derivatives_only": {"llama2", "llama3"},
    "no_competitors": {"openai", "google-gemini", "anthropic"},
    "unknown": {"nvidia-megatron"},
}


def plain(text: str) -> str:
    return " ".join(text.split())


def test_every_licence_is_judged_as_its_text_reads():
    assert {outputs: {t.id for t in TERMS.values() if t.outputs == outputs} for outputs in OWN_WORDS} == OWN_WORDS


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_an_entry_has_its_source_and_says_what_to_do(terms: Terms):
    assert TERMS[terms.id] is terms and terms.url.startswith("https://")
    assert datetime.date(2024, 1, 1) < datetime.date.fromisoformat(terms.read) <= datetime.date.today()
    # nothing is guessed: what was not read has no quote, and what was read is quoted shortly
    assert (terms.outputs == "unknown") == (terms.quote == "") and len(terms.quote) < 400
    assert (terms.outputs == "free") == (terms.conditions == ())
    assert all(sentence.strip() == sentence for sentence in (*terms.conditions, *terms.as_base))
    assert (terms.hub == "other") == (bool(terms.hub_name) or bool(terms.hosts))
    # what a run writes is what a user is told to write
    asks = " ".join(terms.as_base)
    assert ('"Notice" with' in asks or "this notice:" in asks or '"Notice" that says' in asks) == bool(terms.notice)
    assert terms.notice in asks and (f'must begin with "{terms.name_begins}"' in asks) == bool(terms.name_begins)


@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_every_published_checkpoint_has_terms(checkpoint):
    assert checkpoint.licence in TERMS


def test_quotes_are_word_for_word_where_the_text_is_at_hand():
    assert plain(TERMS["apache-2.0"].quote) in plain((ROOT / "LICENSE").read_text())
    of_pydantic = next(f for f in importlib.metadata.files("pydantic") or () if f.name == "LICENSE")
    text = of_pydantic.read_text()
    assert "The MIT License" in text and TERMS["mit"].quote in plain(text)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://API.OpenAI.com:443/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "google-gemini"),
        ("https://api.anthropic.com/v1", "anthropic"),
        ("https://notopenai.com/v1", None),
        ("https://openai.com.example.org/v1", None),
        ("http://localhost:8000/openai.com", None),
        ("", None),
    ],
)
def test_services_are_known_by_their_host(address, found):
    terms = terms_at(address)
    assert (terms.id if terms else None) == found


@pytest.mark.parametrize(
    ("front_matter", "found"),
    [
        ("license: llama2\ntags: [x]", "llama2"),
        ("license: 'apache-2.0'", "apache-2.0"),
        ("license: other\nlicense_name: mrl\nlicense_link: https://x", "mistral-research"),
        ("license: other\nlicense_name: qwen-research", "qwen-research"),
        ("license: other\nlicense_name: llama3.1-and-gemma\nlicense_link: https://x", "llama3.1+gemma"),
        ("license: other", None),
        ("license: cc-by-4.0", None),
        ("tags: [license]", None),
    ],
)
def test_a_folder_is_known_by_its_card(tmp_path, front_matter, found):
    (tmp_path / "README.md").write_text(f"---\n{front_matter}\n---\n\n# Model\n\nlicense: mit\n")
    assert "+".join(terms.id for terms in terms_of_folder(tmp_path)) == (found or "")


def test_a_folder_without_a_card_is_not_known(tmp_path):
    assert terms_of_folder(tmp_path) == ()
    (tmp_path / "README.md").write_text("license: mit\n")
    assert terms_of_folder(tmp_path) == ()


def test_a_card_under_several_licences_is_read_as_it_is_written(tmp_path):
    models = [terms for terms in TERMS.values() if not terms.hosts]
    assert not any("-and-" in name for terms in models for name in (terms.id, terms.hub, terms.hub_name))
    for one in models:
        for two in models:
            said = "".join(f"{key}: {value}\n" for key, value in in_card((one, two)).items())
            (tmp_path / "README.md").write_text(f"---\n{said}---\n")
            assert terms_of_folder(tmp_path) == (one, two)
    # half of it would be a judgement of something else
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: llama2-and-mine\n---\n")
    assert terms_of_folder(tmp_path) == ()


def test_what_hubs_call_a_licence_leads_back_to_it():
    for terms in TERMS.values():
        if terms.hosts:
            continue
        found = terms_called(terms.hub, terms.hub_name)
        # GPT-2's cards say mit, whose terms are no stricter
        assert found and found.outputs == terms.outputs and (found is terms or terms.id == "mit-modified")


def row(terms: Terms) -> str:
    """The line of docs/licences.md for one entry."""
    quote = f'"{terms.quote}" ({terms.clause or "grant"})' if terms.quote else ""
    said = f"{quote} {terms.copy}".strip()
    return f"| `{terms.id}` | {terms.outputs} | {said} | [{terms.title}]({terms.url}) | {terms.read} |"


def test_the_page_is_the_table():
    page = Path(ROOT / "docs/licences.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| `")] == [row(terms) for terms in TERMS.values()]
