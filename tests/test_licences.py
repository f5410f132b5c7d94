"""What licences say of a recipe, and that a forbidden one stops before anything is downloaded or written."""

import pytest

from distill import _hydra
from distill._licences import check_licences, notes, verdict
from distill.checks import check
from distill.errors import RecipeError
from distill.family.licence import TERMS
from distill.recipe import Recipe, parse

LLAMA2, LLAMA2_SMALL = "meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-7b-hf"


def recipe(teacher: str | None, student: str | None = None, *more: str) -> Recipe:
    overrides = [f"teacher.model={teacher}"] if teacher else []
    overrides += ["student=pretrained", f"student.model={student}"] if student else []
    return parse(_hydra.compose([*overrides, *more]).config)


def served(base_url: str, *more: str, model: str = "some-model") -> Recipe:
    return recipe(None, None, "teacher=server", f"teacher.base_url={base_url}", f"teacher.model={model}", *more)


@pytest.mark.parametrize(
    ("teacher", "student", "level"),
    [
        ("openai-community/gpt2-xl", "openai-community/gpt2", "ok"),
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-0.6B", "ok"),
        ("EleutherAI/gpt-neo-2.7B", None, "ok"),
        (LLAMA2, LLAMA2_SMALL, "notice"),
        ("codellama/CodeLlama-34b-hf", "codellama/CodeLlama-7b-hf", "notice"),
        ("codellama/CodeLlama-34b-hf", LLAMA2_SMALL, "notice"),
        (LLAMA2, "huggyllama/llama-7b", "refused"),
        (LLAMA2, "meta-llama/Meta-Llama-3-8B", "refused"),
        (LLAMA2, None, "refused"),
        (LLAMA2, "openai-community/gpt2", "refused"),
        (LLAMA2, "nobody/unknown", "refused"),
        ("meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-8B", "notice"),
        ("meta-llama/Meta-Llama-3-70B", "meta-llama/Llama-3.1-8B", "refused"),
        ("meta-llama/Llama-3.1-70B", "Qwen/Qwen3-0.6B", "notice"),
        ("facebook/opt-66b", "facebook/opt-1.3b", "notice"),
        ("huggyllama/llama-65b", "huggyllama/llama-7b", "notice"),
        ("bigscience/bloom", "bigscience/bloom-560m", "notice"),
        ("google/gemma-3-1b-it", None, "notice"),
        ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-0.5B", "notice"),
        ("openai-community/gpt2-xl", "meta-llama/Llama-3.2-1B", "notice"),
        ("nobody/unknown", "openai-community/gpt2", "unknown"),
        ("openai-community/gpt2-xl", "nobody/unknown", "unknown"),
    ],
)
def test_each_pair_is_judged_as_the_licences_read(teacher, student, level):
    assert verdict(recipe(teacher, student)).level == level


def test_data_that_a_model_wrote_carry_that_models_conditions_too():
    """The hub tags it apache-2.0; Llama 3.1's 1.b.i speaks of whatever its outputs train."""
    said = verdict(parse(_hydra.compose(["recipe=customer_service_chat"]).config))
    written = [f for f in said.findings if f.party.key == "data.path" and "was written by" in str(f)]
    assert [f.level for f in written] == ["notice"] and written[0].party.terms is TERMS["llama3.1"]
    assert "meta-llama/Llama-3.1-70B-Instruct, which is under the Llama 3.1 Community License" in str(written[0])
    assert 'must begin with "Llama"' in str(written[0])
    own = verdict(parse(_hydra.compose(["recipe=math_assistant"]).config))
    assert not any("was written by" in str(f) for f in own.findings)


@pytest.mark.parametrize("base_url", ["https://api.openai.com/v1", "https://api.anthropic.com/v1"])
def test_closed_services_are_refused_until_accepted(base_url):
    said = verdict(served(base_url, "loss=text"))
    assert said.level == "refused" and len(said.to_accept) == 1
    again = served(base_url, "loss=text", f"licence.accept=[{said.to_accept[0]}]")
    check_licences(again)
    assert any("accepted" in note for note in notes(again))


def test_a_served_checkpoint_is_known_by_its_name():
    local = "http://localhost:8000/v1"
    assert verdict(served(local, "loss=text", model=LLAMA2)).to_accept == ["llama2"]
    assert verdict(served(local, "loss=text")).level == "unknown"


def test_every_routed_teacher_is_judged():
    routed = recipe(
        None,
        LLAMA2_SMALL,
        "teacher=routed",
        "teacher.teachers={a: {kind: hf, model: meta-llama/Llama-2-70b-hf}, b: {kind: server, model: x, "
        "base_url: 'https://api.openai.com/v1'}, c: {kind: server, model: y, "
        "base_url: 'https://generativelanguage.googleapis.com/v1beta/openai'}}",
        "data=local",
        "data.path=rows.jsonl",
        "data.teacher_field=who",
        "loss=text",
        "licence.accept=[llama3]",
    )
    said = verdict(routed)
    assert [teacher.key for teacher in said.teachers] == [f"teacher.teachers.{name}.model" for name in "abc"]
    assert said.to_accept == ["openai", "google-gemini"] and said.findings[0].level == "ok"
    with pytest.raises(RecipeError, match=r"licence\.accept=\[llama3,openai,google-gemini\]"):
        check_licences(routed)


def test_without_a_teacher_the_student_s_own_licence_counts():
    without = ("teacher=none", "loss=text", "baselines=[]")
    alone = verdict(recipe(None, LLAMA2_SMALL, *without))
    assert alone.teachers == () and alone.level == "notice" and "copy of the agreement" in alone.sentences[0]
    assert verdict(recipe(None, None, *without)).level == "ok"


def test_nobody_knows_who_answered_in_a_file():
    said = verdict(recipe(None, "openai-community/gpt2", "teacher=file", "teacher.path=answers.jsonl", "loss=text"))
    assert [finding.level for finding in said.findings] == ["unknown", "ok"]


def test_known_data_is_said_with_its_licence():
    said = verdict(recipe("Qwen/Qwen3-32B", None, "data=local", "data.path=openai/gsm8k"))
    assert said.data and said.data.tag == "mit" and said.level == "ok"
    assert verdict(recipe("Qwen/Qwen3-32B", None, "data=local", "data.path=mine/rows")).data is None


def test_a_folder_is_judged_by_its_card_or_by_its_name(tmp_path):
    folder = tmp_path / "checkpoints" / "teacher"
    folder.mkdir(parents=True)
    assert verdict(recipe(str(folder))).level == "unknown"
    (folder / "README.md").write_text("---\nlicense: llama2\n---\n")
    assert verdict(recipe(str(folder))).to_accept == ["llama2"]
    mirrored = tmp_path / "facebook" / "opt-66b"
    mirrored.mkdir(parents=True)
    assert verdict(recipe(str(mirrored))).teachers[0].terms is TERMS["opt-175b"]


def test_a_student_of_two_licences_is_judged_by_both_in_the_next_recipe(tmp_path):
    """What a card calls such a model stands for each of its licences, as teacher and as student."""
    first = verdict(recipe("google/gemma-3-27b-it", LLAMA2_SMALL))
    assert [terms.id for terms in first.packages or ()] == ["llama2", "gemma"]
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: llama2-and-gemma\n---\n")
    made = str(tmp_path)
    as_student = verdict(recipe(LLAMA2, made))
    # Llama 2's outputs may train it, as it started from Llama 2; both licences hold for the packages
    assert as_student.level == "notice" and as_student.findings[0].level == "ok"
    said = " ".join(as_student.sentences)
    assert "Llama 2 Community License (llama2), and so are the packages" in said
    assert "Gemma Terms of Use (Gemma 1 to 3) (gemma), and so are the packages" in said
    assert [terms.id for terms in as_student.packages or ()] == ["llama2", "gemma"]
    as_teacher = verdict(recipe(made, "openai-community/gpt2"))
    assert as_teacher.to_accept == ["llama2"] and [f.level for f in as_teacher.findings[:2]] == ["refused", "notice"]
    assert [terms.id for terms in as_teacher.packages or ()] == ["mit-modified", "gemma"]
    with pytest.raises(RecipeError, match=r"licence\.accept=\[llama2\]"):
        check_licences(recipe(made, "openai-community/gpt2"))


def test_bundled_checkpoints_are_ours():
    said = verdict(recipe("bundled:quickstart_teacher"))
    assert said.level == "ok" and notes(recipe("bundled:quickstart_teacher")) == []
    assert "teacher.model=bundled:quickstart_teacher is under the Apache License 2.0" in said.sentences[0]


def test_a_run_s_own_file_is_judged_like_the_recipe():
    parsed = recipe(LLAMA2, LLAMA2_SMALL)
    plain = {
        "teacher": {"kind": "hf", "model": LLAMA2},
        "student": {"kind": "pretrained", "model": LLAMA2_SMALL},
        "data": {"kind": "word_problems"},
    }
    assert verdict(plain) == verdict(parsed)
    assert verdict({}).level == "ok"


def test_the_refusal_quotes_its_clause_and_says_what_goes_on():
    with pytest.raises(RecipeError) as refused:
        check(recipe(LLAMA2, "openai-community/gpt2"))
    lines = str(refused.value).split("\n")
    assert len(lines) <= 6
    assert f"teacher.model={LLAMA2} is under the Llama 2 Community License" in lines[0]
    assert "student.model=openai-community/gpt2 is not under it" in lines[0]
    assert "to improve any other large language model (excluding Llama 2 or derivative works thereof)." in lines[1]
    assert "https://" in lines[2] and "2026-" in lines[2] and lines[3].endswith("licence.accept=[llama2]")


def test_what_must_be_done_is_noted_and_what_is_free_is_not():
    said = notes(recipe("meta-llama/Llama-3.1-70B", "Qwen/Qwen3-0.6B"))
    assert len(said) == 1 and 'must begin with "Llama"' in said[0] and '"Built with Llama"' in said[0]
    assert notes(recipe("openai-community/gpt2-xl", "openai-community/gpt2")) == []
    assert len(notes(recipe("nobody/a", "nobody/b"))) == 2


def test_an_unknown_id_in_accept_is_refused_with_the_list():
    with pytest.raises(RecipeError, match=r"'lama2', which is no licence here; did you mean llama2\? ") as refused:
        check_licences(recipe(LLAMA2, LLAMA2_SMALL, "licence.accept=[lama2]"))
    assert "\n" not in str(refused.value) and all(name in str(refused.value) for name in TERMS)


def test_the_command_stops_before_any_download_and_writes_nothing(run_cli, tmp_path):
    ran = run_cli(f"teacher.model={LLAMA2}", "student=scratch")
    assert ran.returncode == 2 and "licence.accept=[llama2]" in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr and list(tmp_path.iterdir()) == []


def test_accepting_goes_on_to_the_next_question(run_cli):
    # offline, the checkpoint cannot be found: the licence is no longer what stops it
    ran = run_cli(f"teacher.model={LLAMA2}", "student=scratch", "licence.accept=[llama2]", HF_HUB_OFFLINE="1")
    assert ran.returncode == 2 and "licence" not in ran.stderr and LLAMA2 in ran.stderr


def test_a_rehearsal_is_never_refused_and_says_its_verdict_itself():
    forbidden = recipe(LLAMA2, "openai-community/gpt2", "rehearse=true")
    check_licences(forbidden)
    assert notes(forbidden) == [] and verdict(forbidden).level == "refused"
