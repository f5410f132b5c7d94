"""What names and endpoints say of terms: closed models wherever they are sold, and copies of published weights."""

import pytest

from distill import _hydra
from distill._licences import check_licences, notes, verdict
from distill.errors import RecipeError
from distill.family.inferred import terms_of_copy, terms_served
from distill.recipe import parse

OPENROUTER, LOCAL = "https://openrouter.ai/api/v1", "http://localhost:4000/v1"
AZURE = "https://resource.openai.azure.com/openai/v1"
FOUNDRY = "https://resource.services.ai.azure.com/models/v1"
VERTEX = "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1/endpoints/openapi"
BEDROCK = "https://bedrock-runtime.us-east-1.amazonaws.com/openai/v1"


@pytest.mark.parametrize(
    ("address", "model", "found"),
    [
        (OPENROUTER, "openai/gpt-4o", "openai"),
        (OPENROUTER, "openai/chatgpt-4o-latest", "openai"),
        (OPENROUTER, "openai/o3-mini", "openai"),
        (OPENROUTER, "google/gemini-2.5-pro", "google-gemini"),
        (OPENROUTER, "anthropic/claude-sonnet-4.5:thinking", "anthropic"),
        (OPENROUTER, "google/gemma-3-27b-it:free", "gemma"),
        (AZURE, "a-name-of-their-own", "openai"),
        (AZURE, "gpt-35-turbo", "openai"),
        (FOUNDRY, "o1", "openai"),
        (FOUNDRY, "a-name-of-their-own", None),
        ("https://openai.azure.com.example.org/v1", "a-name-of-their-own", None),
        (VERTEX, "google/gemini-2.0-flash", "google-gemini"),
        (VERTEX, "publishers/google/models/gemini-2.0-flash@001", "google-gemini"),
        (BEDROCK, "us.anthropic.claude-3-5-sonnet-20240620-v1:0", "anthropic"),
        (LOCAL, "gpt-4o", "openai"),
        (LOCAL, "claude-opus-4-1", "anthropic"),
        # open weights, and names that only look like it
        (OPENROUTER, "openai/gpt-oss-120b", None),
        (LOCAL, "gpt4all-j", None),
        (LOCAL, "EleutherAI/gpt-j-6b", None),
        (LOCAL, "somebody/gpt-4-x-alpaca", None),
        (LOCAL, "somebody/claude-like-7b", None),
        (LOCAL, "olmo-7b", None),
        (LOCAL, "some-model", None),
    ],
)
def test_a_served_model_is_known_by_its_name_or_its_host(address, model, found):
    inferred = terms_served(address, model)
    assert (inferred.terms.id if inferred else None) == found


@pytest.mark.parametrize(
    ("address", "beside"),
    [
        (OPENROUTER, True),
        ("https://93.184.216.34/v1", True),
        (LOCAL, False),
        ("http://10.0.0.3:8000/v1", False),
        ("http://[::1]:8000/v1", False),
        ("http://gateway:8000/v1", False),
        ("http://llm.team.svc/v1", False),
    ],
)
def test_who_sells_it_is_named_unless_it_is_one_s_own_network(address, beside):
    assert ("itself asks" in terms_served(address, "gpt-4o").why) == beside


@pytest.mark.parametrize(
    ("model", "original", "licence"),
    [
        ("NousResearch/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf", "llama2"),
        ("unsloth/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "llama3.1"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct", "llama3.1"),
        ("unsloth/llama-3-8b-bnb-4bit", "meta-llama/Meta-Llama-3-8B", "llama3"),
        ("TheBloke/Llama-2-13B-chat-GPTQ", "meta-llama/Llama-2-13b-chat-hf", "llama2"),
        ("decapoda-research/llama-7b-hf", "huggyllama/llama-7b", "llama-1"),
        ("unsloth/gemma-3-27b-it-GGUF", "google/gemma-3-27b-it", "gemma"),
        ("openlm-research/open_llama_7b", None, None),
        ("TinyLlama/TinyLlama-1.1B", None, None),
        ("allenai/Llama-3.1-Tulu-3-8B", None, None),
        ("facebook/opt-iml-30b", None, None),
    ],
)
def test_a_copy_is_known_by_its_name(model, original, licence):
    inferred = terms_of_copy(model)
    assert (inferred and inferred.terms.id) == licence
    assert inferred is None or original in inferred.why


def recipe(*typed):
    return parse(_hydra.compose(list(typed)).config)


def served(address, model, *more):
    return recipe("teacher=server", f"teacher.base_url={address}", f"teacher.model={model}", "loss=text", *more)


@pytest.mark.parametrize(("model", "id"), [("openai/gpt-4o", "openai"), ("google/gemini-2.5-pro", "google-gemini")])
def test_a_resold_closed_model_is_refused_until_accepted(model, id):
    with pytest.raises(RecipeError) as refused:
        check_licences(served(OPENROUTER, model))
    lines = str(refused.value).splitlines()
    assert len(lines) <= 6 and lines[0].startswith(
        f"teacher.model={model} is, by its name and beside what openrouter.ai"
    )
    assert lines[-1].endswith(f"licence.accept=[{id}]")
    again = served(OPENROUTER, model, f"licence.accept=[{id}]")
    check_licences(again)
    assert any("accepted by licence.accept" in note for note in notes(again))


def test_copies_are_judged_like_what_they_copy():
    copy, original = "NousResearch/Llama-2-70b-hf", "meta-llama/Llama-2-70b-hf"
    assert verdict(recipe(f"teacher.model={copy}")).to_accept == ["llama2"]
    assert verdict(recipe(f"teacher.model={original}")).to_accept == ["llama2"]
    # both sides are Llama 2's: its outputs may train it
    own = verdict(recipe(f"teacher.model={copy}", "student=pretrained", "student.model=NousResearch/Llama-2-7b-hf"))
    assert own.level == "notice" and own.findings[0].level == "ok"
    assert f"is, by its name a copy of {original}, under the Llama 2 Community License (llama2)" in own.sentences[0]
    assert "is, by its name a copy of meta-llama/Llama-2-7b-hf, under" in own.sentences[1]


def test_a_misspelt_student_is_told_so_before_it_is_refused():
    typed = ["teacher.model=meta-llama/Llama-2-70b-hf", "student=pretrained", "student.model=meta-llama/Llama-2-8b-hf"]
    with pytest.raises(RecipeError) as refused:
        check_licences(recipe(*typed))
    lines = str(refused.value).splitlines()
    assert (
        len(lines) <= 6 and "Llama 2 was published in 7B, 13B, 70B; did you mean meta-llama/Llama-2-7b-hf" in lines[0]
    )
    with pytest.raises(RecipeError) as refused:
        check_licences(recipe(*typed[:2], "student.model=nobody/anything"))
    assert "did you mean" not in str(refused.value)


def test_a_folder_is_judged_by_its_card_before_its_name(tmp_path):
    folder = tmp_path / "Llama-2-7b-hf"
    folder.mkdir()
    assert verdict(recipe(f"teacher.model={folder}")).to_accept == ["llama2"]
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert verdict(recipe(f"teacher.model={folder}")).level == "ok"
