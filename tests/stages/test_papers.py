"""The papers beside a package's weights: those of its licences, whole, and what a notice must say."""

from pathlib import Path

import pytest

from distill import _hydra
from distill.family.licence import TERMS
from distill.recipe import Recipe, parse
from distill.stages._papers import add_papers

NOTICE = {
    # from the licences' own clauses on attribution, apart from the table
    "llama3.1": "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All "
    "Rights Reserved.",
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
}


def recipe(student: Path | str, teacher: Path | str, *more: str) -> Recipe:
    overrides = [f"teacher.model={teacher}", "student=pretrained", f"student.model={student}", *more]
    return parse(_hydra.compose(overrides).config)


def model(folder: Path, licence: str, **papers: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    for name, text in papers.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture
def package(tmp_path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    return folder


def found(package: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in package.iterdir() if file.name != "model.safetensors"}


def test_a_llama_s_licence_policy_and_notice_travel(tmp_path, package):
    start = model(
        tmp_path / "llama", "llama3.1", LICENSE="the agreement", USE_POLICY__md="the policy", config__json="{}"
    )
    assert add_papers(recipe(start, "Qwen/Qwen3-32B"), package) == []
    notice = NOTICE["llama3.1"] + "\n"
    assert found(package) == {"LICENSE": "the agreement", "USE_POLICY.md": "the policy", "Notice": notice}
    # and again, as a run does that goes on
    assert add_papers(recipe(start, "Qwen/Qwen3-32B"), package) == [] and len(found(package)) == 3


def test_a_teacher_s_terms_that_reach_the_student_travel_beside_the_student_s(tmp_path, package):
    start = model(tmp_path / "llama", "llama3.1", LICENSE="of Meta", notice__txt="Made by us.")
    teacher = model(tmp_path / "gemma-big", "gemma", license="of Google", NOTICE__txt="Of gemma.")
    assert add_papers(recipe(start, teacher), package) == []
    assert found(package) == {
        "LICENSE": "of Meta",
        "license-gemma-big": "of Google",
        "NOTICE-gemma-big.txt": "Of gemma.",
        "notice.txt": f"Made by us.\n\n{NOTICE['llama3.1']}\n\n{NOTICE['gemma']}\n",
    }
    # the student of that student has all of it again
    (package / "README.md").write_text("---\nlicense: other\nlicense_name: llama3.1-and-gemma\n---\n")
    second = tmp_path / "second"
    second.mkdir()
    assert add_papers(recipe(package, "Qwen/Qwen3-32B"), second) == []
    assert found(second) == {name: text for name, text in found(package).items() if name != "README.md"}


def test_terms_that_end_at_the_teacher_do_not_travel(tmp_path, package):
    teacher = model(tmp_path / "qwen", "apache-2.0", LICENSE="of Alibaba")
    start = model(tmp_path / "start", "mit", LICENSE="of the start")
    add_papers(recipe(start, teacher), package)
    assert found(package) == {"LICENSE": "of the start"}


def test_a_text_that_is_nowhere_is_asked_for(tmp_path, package):
    start = model(tmp_path / "start", "gemma", USE_POLICY__md="the policy")
    (said,) = add_papers(recipe(start, "bundled:quickstart_teacher"), package)
    assert f"student.model={start} has no file of it" in said and TERMS["gemma"].url in said
    assert set(found(package)) == {"USE_POLICY.md", "Notice"}
    assert add_papers(recipe("bundled:quickstart_teacher", "bundled:quickstart_teacher"), package) == []


def test_a_rehearsal_s_packages_get_none(tmp_path, package):
    start = model(tmp_path / "llama", "llama3.1", LICENSE="the agreement")
    assert add_papers(recipe(start, "Qwen/Qwen3-32B", "rehearse=true"), package) == [] and found(package) == {}


def test_papers_decide_no_weight_and_so_no_fingerprint(tmp_path):
    from distill.artifact import hash_folder

    start = model(tmp_path / "start", "mit", config__json="{}")
    before = hash_folder(start)
    for name in ("LICENSE.txt", "Notice", "USE_POLICY.md", "licence"):
        (start / name).write_text(name)
    assert hash_folder(start) == before
    (start / "notes.json").write_text("[]")
    assert hash_folder(start) != before
