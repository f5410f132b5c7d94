"""The model card: its metadata, its figures, and a snippet that really loads the package."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from distill.stages.report import write_card

SAMPLE_RUN = Path(__file__).parent / "sample_run"


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(SAMPLE_RUN, tmp_path / "run"))


@pytest.fixture
def package(tmp_path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    return folder


def card_of(package: Path, run: Path, name: str):
    from huggingface_hub import ModelCard

    write_card(package, run=run, name=name)
    return ModelCard.load(package / "README.md")


def run_snippet(text: str, package: Path, more: str = "") -> str:
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(package)) + more
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue()


def test_metadata_says_what_is_known_and_no_more(run, package):
    (package / "model-q8_0.gguf").touch()
    card = card_of(package, run, "gguf_q8_0")
    assert card.data.library_name == "gguf" and card.data.pipeline_tag == "text-generation"
    assert {"distillation", "gguf_q8_0"} <= set(card.data.tags)
    assert card.data.license is None and card.data.base_model is None and card.data.datasets is None
    assert "No licence is stated" in card.text and "llama-completion -m model-q8_0.gguf" in card.text
    assert "ollama" not in card.text and "pip install xllamacpp\n" in card.text
    (package / "Modelfile").touch()
    assert "ollama create my-model -f Modelfile" in card_of(package, run, "gguf_q8_0").text


def test_what_became_of_short_rows_stands_before_how_to_use_it(run, package):
    """Who downloads a "4-bit" package of 6 bits per weight has neither the terminal nor the logbook."""
    from huggingface_hub import ModelCard

    said = "25 of 29 matrices became Q5_0 and Q8_0: 6.0 bits per weight."
    (package / "model-q4_k_m.gguf").touch()
    write_card(package, run=run, name="gguf_q8_0", notes=[said])
    before, _, _ = ModelCard.load(package / "README.md").text.partition("## Use")
    assert f"\n\n{said}\n\n" in before
    assert said not in card_of(package, run, "gguf_q8_0").text


def test_the_pipeline_hands_a_package_s_notes_to_its_card(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from distill import pipeline
    from distill.stages import report

    told = {}
    for name in ("q4", "q8"):
        (tmp_path / name).mkdir()
    (tmp_path / "q4" / "notes.json").write_text('["six bits"]')
    packages = {name: SimpleNamespace(path=tmp_path / name) for name in ("q4", "q8")}

    class AtTheCards(Exception):
        pass

    def write(package, *, run, name, notes):
        told[name] = list(notes)
        if len(told) == 2:
            raise AtTheCards

    monkeypatch.setattr(report, "write_card", write)
    monkeypatch.setattr(report, "write_report", lambda folder: None)
    monkeypatch.setattr(pipeline, "results", SimpleNamespace(write_curves=print, write_samples=print))
    this = SimpleNamespace(
        models={},
        packages=packages,
        folder=tmp_path,
        scores={},
        recipe=SimpleNamespace(evaluation=None),
        examples=SimpleNamespace(evaluation={"exact_match": None}),
    )
    with pytest.raises(AtTheCards):
        pipeline.Run.report(this)
    assert told == {"q4": ["six bits"], "q8": []}


def edit_recipe(run: Path, *pairs: tuple[str, str]) -> None:
    text = (run / "recipe.yaml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (run / "recipe.yaml").write_text(text)


def test_hub_ids_reach_the_metadata(run, package):
    edit_recipe(run, ("student: {", "student: {model: org/base, "), ("data: {", "data: {path: org/questions, "))
    card = card_of(package, run, "bf16")
    assert (card.data.license, card.data.base_model, card.data.datasets) == (None, "org/base", ["org/questions"])
    edit_recipe(run, ("path: org/questions", "path: data/questions.jsonl"))
    assert card_of(package, run, "bf16").data.datasets is None


def test_no_folder_of_this_machine_is_named(run, package, tmp_path, monkeypatch):
    edit_recipe(
        run,
        ("teacher: {model: example-org/word-problems-3m", f"teacher: {{model: {tmp_path}/outputs/big/packages/bf16"),
        ("student: {", "student: {model: /secret/place/small, "),
        ("data: {", "data: {path: /secret/place/questions.jsonl, "),
    )
    monkeypatch.chdir(tmp_path)
    text = card_of(package, run, "bf16").text
    assert "/secret" not in text and str(tmp_path) not in text
    assert "`small`" in text and "`outputs/big/packages/bf16`" in text and "`questions.jsonl`" in text


def test_the_licence_is_the_one_of_the_student_s_start(run, package):
    edit_recipe(run, ("student: {", "student: {model: openai-community/gpt2, "))
    card = card_of(package, run, "bf16")
    assert card.data.license == "mit" and "- This package: mit." in card.text
    assert "The student's start `openai-community/gpt2` is under the Modified MIT License" in card.text
    assert "The teacher `example-org/word-problems-3m` has terms that are not known here" in card.text
    assert "No licence is stated" not in card.text and "not legal advice" in card.text


def test_a_licence_that_hubs_do_not_list_has_a_name_and_a_link(run, package):
    edit_recipe(
        run,
        ("teacher: {model: example-org/word-problems-3m", "teacher: {model: facebook/opt-66b"),
        ("student: {", "student: {model: facebook/opt-1.3b, "),
    )
    card = card_of(package, run, "bf16")
    assert (card.data.license, card.data.license_name) == ("other", "opt-175b")
    assert card.data.license_link.endswith("metaseq/blob/main/projects/OPT/MODEL_LICENSE.md")
    assert "for non-commercial research only" in card.text


def test_terms_that_reach_whatever_learns_from_outputs_reach_the_metadata(run, package):
    edit_recipe(run, ("teacher: {model: example-org/word-problems-3m", "teacher: {model: bigscience/bloom"))
    card = card_of(package, run, "bf16")  # from random weights: nothing but the teacher has a say
    assert card.data.license == "bigscience-bloom-rail-1.0" and "Make the use restrictions of paragraph 5" in card.text
    edit_recipe(run, ("student: {", "student: {model: openai-community/gpt2, "))
    card = card_of(package, run, "bf16")
    assert (card.data.license, card.data.license_name) == ("other", "mit-modified-and-bigscience-bloom-rail-1.0")


def test_a_name_that_the_teacher_s_licence_asks_for_is_said(run, package):
    edit_recipe(run, ("teacher: {model: example-org/word-problems-3m", "teacher: {model: meta-llama/Llama-3.1-70B"))
    text = card_of(package, run, "bf16").text
    assert 'must begin with "Llama"' in text and 'Show "Built with Llama"' in text
    assert "models/llama3_1/LICENSE>" in text


def test_what_was_accepted_is_said(run, package):
    edit_recipe(
        run,
        ("licence: {accept: []}", "licence: {accept: [openai]}"),
        ("override /teacher: hf", "override /teacher: server"),
        ("teacher: {model: example-org/word-problems-3m", "teacher: {base_url: https://api.openai.com/v1, model: o3"),
    )
    card = card_of(package, run, "bf16")
    assert card.data.license is None and "Licences accepted for this run: openai." in card.text
    assert "compete with OpenAI's products and services" in card.text


def test_scores_stand_beside_teacher_and_student_with_the_proof(run, package):
    card = card_of(package, run, "bnb_nf4_lora")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == [
        "teacher",
        "baseline_text",
        "baseline_no_teacher",
        "student",
        "**bnb_nf4_lora**",
    ]
    assert rows[2][1:] == ["96.2", "84.0", "0.412", "–", "–", "12.0 MiB", "412"]
    assert rows[-1][1:] == ["88.4", "70.0", "0.441", "0.0402", "96.4", "841 KiB", "262"]
    assert {len(row) for row in rows} == {8}
    assert "Verified: the folder was loaded in a fresh process with transformers" in card.text
    assert "- KL to the student: 0.00940 nats/token" in card.text and "- same greedy answer: 93.0 %" in card.text
    assert "`example-org/word-problems-3m`" in card.text and "recipe=quickstart tracking=wandb" in card.text


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("kind: file, path: data/answers.jsonl", "learned from `answers.jsonl` ("),
        ("kind: file, path: data/answers.jsonl, name: gpt", "learned from `gpt` ("),
        (
            "kind: routed, teachers: {a: {kind: hf, model: org/a}, b: {kind: server, model: b}}",
            "from `org/a` and `b` (",
        ),
    ],
)
def test_teachers_that_are_no_checkpoint_are_named_and_not_compared_with(run, package, teacher, words):
    scores = json.loads((run / "scores.json").read_text())
    own = [model for model in scores["models"] if model["kind"] in {"student", "package"}]
    for model in own:
        model["scores"] = {"exact_match": 0.5}
    (run / "scores.json").write_text(json.dumps({**scores, "models": own}))
    (run / "recipe.yaml").write_text(f"name: x\nteacher: {{{teacher}}}\nloss: {{kind: text}}\n")
    text = card_of(package, run, "bf16").text
    assert words in text and "KL and agreement" not in text


def test_what_is_missing_is_said(run, package):
    for name in ("scores.json", "verification.json", "record.jsonl", "metrics.jsonl"):
        (run / name).unlink()
    (run / "recipe.yaml").write_text("name: x\nteacher: {kind: none}\n")
    text = card_of(package, run, "bf16").text
    assert "This run did not verify it." in text and "This run did not score it." in text
    assert "without a teacher" in text and "teacher's" not in text


def test_a_package_that_failed_says_so(run, package):
    proofs = json.loads((run / "verification.json").read_text())
    (run / "verification.json").write_text(json.dumps([proofs[0] | {"verified": False, "detail": "KL 0.2 > 0.001"}]))
    text = card_of(package, run, "bf16").text
    assert "**Not verified**: the folder was loaded" in text and "KL 0.2 > 0.001" in text
    # a package that did not even load has no figures
    dead = {"package": "bf16", "verified": False, "runtime": "transformers", "detail": "does not load or run: OSError"}
    (run / "verification.json").write_text(json.dumps([dead]))
    text = card_of(package, run, "bf16").text
    assert "**Not verified**: a fresh process with transformers could not compare it" in text and "OSError" in text
    assert "was loaded" not in text


def test_the_store_is_not_written_through_a_hard_link(run, package, tmp_path):
    sealed = tmp_path / "README.md"
    sealed.write_text("sealed")
    os.link(sealed, package / "README.md")
    write_card(package, run=run, name="bf16")
    assert sealed.read_text() == "sealed" and "# quickstart-bf16" in (package / "README.md").read_text()


def test_the_snippet_of_a_plain_package_runs(run, package, tiny_teacher):
    shutil.copytree(tiny_teacher, package, dirs_exist_ok=True)
    text = card_of(package, run, "bf16").text
    assert "apply_chat_template" in text and "pip install transformers\n" in text
    # as many published checkpoints have it, and a package keeps what its student had
    (package / "generation_config.json").write_text('{"do_sample": true, "temperature": 5.0, "eos_token_id": 0}')
    said = run_snippet(text, package)
    assert said.strip() and said == run_snippet(text, package), "scores are of the likeliest tokens, as is this"


@pytest.fixture
def healed(tiny_teacher, tmp_path) -> Path:
    """A package of compression=bnb_nf4_lora, its adapter as it starts."""
    pytest.importorskip("bitsandbytes")
    from distill.compression.bnb_nf4_lora import BnbNf4Lora
    from distill.stages.compress import _save_adapter, _with_adapter

    option, made = BnbNf4Lora(kind="bnb_nf4_lora", rank=2), tmp_path / "healed"
    option.make(tiny_teacher, made)
    _save_adapter(_with_adapter(option, tiny_teacher, made, seed=0, starts=True), made)
    return made


def test_the_snippet_of_weights_with_an_adapter_loads_both(run, healed):
    assert not (healed / "README.md").exists(), "peft's card, of a model in a scratch folder"
    text = card_of(healed, run, "bnb_nf4_lora").text
    assert "4-bit weights (bitsandbytes) with a LoRA adapter on top" in text
    # without peft, transformers would give the base alone
    assert "pip install transformers peft bitsandbytes\n" in text and "import peft" in text
    count = 'print("adapters", sum("lora_A" in name for name, _ in model.named_parameters()))'
    said = run_snippet(text, healed, count)
    assert said.endswith("adapters 14\n")


def test_weights_with_an_adapter_load_from_a_hub_as_the_card_says(run, healed, tmp_path, monkeypatch):
    import subprocess
    import sys

    from tests.hub_stand_in import hub_of

    assert "huggingface_hub.snapshot_download(its id)" in card_of(healed, run, "bnb_nf4_lora").text
    code = (
        "import peft, huggingface_hub, sys\n"
        "from transformers import AutoModelForCausalLM\n"
        "root = huggingface_hub.snapshot_download('me/healed') if sys.argv[1] == 'downloaded' else 'me/healed'\n"
        "model = AutoModelForCausalLM.from_pretrained(root)\n"
        "assert any('lora_A' in name for name, _ in model.named_parameters())\n"
    )
    with hub_of({"me/healed": {"main": healed}}) as (endpoint, _):
        env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        ended = {
            how: subprocess.run([sys.executable, "-c", code, how], env=env, capture_output=True, text=True)
            for how in ("downloaded", "by its id")
        }
    assert ended["downloaded"].returncode == 0, ended["downloaded"].stderr
    # the day this fails, the card's words about uploads can go
    assert ended["by its id"].returncode != 0


def test_the_snippet_of_an_adapter_alone_runs(run, package, tiny_teacher):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(package)
    for file in (*tiny_teacher.glob("tokenizer*"), *tiny_teacher.glob("chat_template*")):
        shutil.copy(file, package)
    card = card_of(package, run, "lora")
    assert card.data.library_name == "peft" and f"LoRA adapter for `{tiny_teacher.name}`" in card.text
    assert run_snippet(card.text, package).strip()


def test_a_rehearsal_s_card_claims_no_model_no_data_and_no_licence(run, package):
    edit_recipe(
        run,
        ("until: report", "until: report\nrehearse: true"),
        ("student: {", "student: {model: meta-llama/Llama-3.2-1B, "),
        ("data: {", "data: {path: org/questions, "),
    )
    card = card_of(package, run, "bf16")
    before_any_heading = card.text.partition("## ")[0]
    assert "> **Rehearsal: tiny random models of the same architectures; no figure here means" in before_any_heading
    assert (card.data.base_model, card.data.datasets, card.data.license) == (None, None, None)
    assert card.data.license_name is None and card.data.tags == ["rehearsal", "bf16"] and card.data.metrics is None
    assert "learned from" not in card.text and "started from" not in card.text
    assert 'must begin with "Llama"' not in card.text
    edit_recipe(run, ("rehearse: true", "rehearse: false"))
    card = card_of(package, run, "bf16")
    assert "Rehearsal" not in card.text and card.data.base_model == "meta-llama/Llama-3.2-1B"


def test_the_command_ends_where_it_ends(run, package):
    change_start(run, command="python -m distill ")
    assert "```\npython -m distill\n```" in card_of(package, run, "bf16").text


def change_start(run: Path, **values) -> None:
    lines = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
    changed = [{**line, **values} if line["event"] == "start" else line for line in lines]
    (run / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))


@pytest.mark.parametrize("chat", [True, False])
def test_the_snippet_of_a_gguf_runs(run, package, tiny_teacher, tmp_path, chat):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from distill.compression.gguf_q8_0 import GgufQ8_0

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_teacher, checkpoint)
    if not chat:
        (checkpoint / "chat_template.jinja").unlink()
    GgufQ8_0(kind="gguf_q8_0").make(checkpoint, package)
    text = card_of(package, run, "gguf_q8_0").text
    assert ("handle_chat_completions" in text) is chat
    assert run_snippet(text, package) == run_snippet(text, package), "scores are of the likeliest tokens, as is this"


@pytest.mark.parametrize(("setting", "words"), [("load_in_8bit", "8-bit weights"), ("load_in_4bit", "4-bit weights")])
def test_quantised_packages_name_bitsandbytes(run, package, setting, words):
    (package / "config.json").write_text(json.dumps({"quantization_config": {setting: True}}))
    text = card_of(package, run, "bnb_int8").text
    assert words in text and "pip install transformers bitsandbytes\n" in text
