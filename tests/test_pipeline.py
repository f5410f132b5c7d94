"""The whole pipeline on tiny models: every stage real, reuse, resume after SIGKILL, the contracts of design.md §6–7."""

import json
import signal
import subprocess
import sys
import time

import pytest

from distill.data.word_problems import WordProblems
from distill.run_folder import RunFolder
from tests.conftest import cli_environment

pytestmark = pytest.mark.slow

PACKAGES = ["bf16", "bnb_int8", "bnb_nf4", "bnb_nf4_lora", "gguf_q8_0"]
# random weights are not what the bars of verification are made for
LENIENT = [f"compression.{name}.max_kl_nats=5" for name in PACKAGES]


@pytest.fixture(scope="module")
def arguments(tiny_run_arguments):
    return [
        *tiny_run_arguments,
        *LENIENT,
        "compression.bnb_nf4_lora.max_steps=4",
        "baselines=[baseline_text,baseline_no_teacher]",
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, arguments):
    """One uninterrupted run."""
    folder = tmp_path_factory.mktemp("run")
    ran = start(folder, *arguments).communicate(timeout=400)
    assert "report.html" in ran[1], ran[1]
    return folder


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "distill", *arguments],
        cwd=folder,
        env=cli_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_folders(folder, recipe="quickstart"):
    return sorted((folder / "outputs" / recipe).iterdir())


def stages(run):
    lines = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "stage"]


def numbers(run):
    """What must not depend on interruptions: everything in scores.json but speeds, paths and the folder's name."""
    scores = json.loads((run / "scores.json").read_text())
    return {
        m["name"]: (m["kind"], m["bytes"], m["parameters"], m["scores"], m.get("verified")) for m in scores["models"]
    }


def test_a_run_leaves_what_the_contract_says(finished):
    (run,) = run_folders(finished)
    for name in ("recipe.yaml", "record.jsonl", "logbook.md", "scores.json", "report.html", "metrics.jsonl"):
        assert (run / name).stat().st_size > 0, name
    scores = json.loads((run / "scores.json").read_text())
    assert scores["recipe"] == "quickstart" and scores["run"] == run.name
    assert (scores["seed"], scores["task"]) == (0, "exact_match")
    # the rows themselves, generated again
    recipe = RunFolder.read(run).recipe["data"]
    judged = WordProblems(**{key: recipe[key] for key in ("kind", "evaluation_rows", "new_template_rows")}).load()
    assert scores["evaluation_rows"] == judged.evaluation_fingerprint
    assert [m["name"] for m in scores["models"]] == [
        "teacher",
        "baseline_text",
        "baseline_no_teacher",
        "student",
        *PACKAGES,
    ]
    for model in scores["models"]:
        assert set(model["scores"]) >= {"exact_match", "exact_match_new_templates", "bits_per_byte"}
        assert model["bytes"] > 0 and model["speed"]["decode_tokens_per_second"] > 0
        if model["name"] != "teacher":
            assert 0 <= model["scores"]["kl_to_teacher_nats"] < 20 and 0 <= model["scores"]["top1_agreement"] <= 1
    packages = {m["name"]: m for m in scores["models"] if m["kind"] == "package"}
    assert all(m["verified"] for m in packages.values())
    assert packages["gguf_q8_0"]["speed"]["runtime"] == "llama.cpp"
    assert packages["bf16"]["bytes"] < next(m["bytes"] for m in scores["models"] if m["name"] == "student")


def test_packages_are_whole_folders_without_links_that_leave(finished):
    (run,) = run_folders(finished)
    for name in PACKAGES:
        files = [path for path in (run / "packages" / name).rglob("*") if path.is_file()]
        assert files and not any(path.is_symlink() for path in files)
        assert (run / "packages" / name / "README.md").read_text().startswith("---\n")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(run / "packages" / "bf16")
    AutoTokenizer.from_pretrained(run / "packages" / "bf16")


def test_bitsandbytes_packages_are_bit_equal_after_reload(finished):
    (run,) = run_folders(finished)
    proofs = {p["package"]: p for p in json.loads((run / "verification.json").read_text())}
    assert proofs["bnb_int8"]["bit_equal_reload"] is True and proofs["bnb_nf4"]["bit_equal_reload"] is True
    assert all(p["token_ids_equal"] for p in proofs.values())


def test_the_same_command_again_reuses_everything(finished, arguments):
    before = run_folders(finished)
    _, said = start(finished, *arguments).communicate(timeout=200)
    (new,) = set(run_folders(finished)) - set(before)
    assert all(stage["reused"] for stage in stages(new)), said
    assert numbers(new) == numbers(before[0])
    assert "made in" not in said


def test_a_runs_own_recipe_reproduces_it(finished):
    before = run_folders(finished)
    _, said = start(finished, f"recipe={before[0] / 'recipe.yaml'}").communicate(timeout=200)
    (new,) = set(run_folders(finished)) - set(before)
    assert all(stage["reused"] for stage in stages(new)), said
    assert (new / "recipe.yaml").read_text() == (before[0] / "recipe.yaml").read_text()


def test_another_loss_asks_the_teacher_nothing_new(finished, arguments):
    before = run_folders(finished)
    _, said = start(finished, *arguments, "loss=jsd", "until=train").communicate(timeout=200)
    (new,) = set(run_folders(finished)) - set(before)
    reused = {stage["name"]: stage["reused"] for stage in stages(new)}
    assert reused == {
        "teach": True,
        "train baseline_text": True,
        "train baseline_no_teacher": True,
        "train student": False,
    }
    assert "loss" in next(s["why"] for s in stages(new) if s["name"] == "train student"), said
    assert not (new / "scores.json").exists()


@pytest.mark.parametrize(
    ("stage", "appears"),
    [
        ("teach", "responses/*.scratch/shard-00000.bin"),
        ("train", "student/*.scratch/trainer/checkpoint-4/complete"),
        ("heal", "package/*.scratch/trainer/checkpoint-*/complete"),
        ("evaluate", "scores/*/scores.json"),
    ],
)
def test_a_run_killed_anywhere_goes_on_to_the_same_numbers(stage, appears, finished, arguments, tmp_path):
    process = start(tmp_path, *arguments)
    store = tmp_path / "outputs" / "store"
    deadline = time.monotonic() + 300
    # a shard appears empty; some batches must be in it
    while not any(file.suffix != ".bin" or file.stat().st_size > 2000 for file in store.glob(appears)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, said = start(tmp_path, *arguments).communicate(timeout=400)
    last = run_folders(tmp_path)[-1]
    assert numbers(last) == numbers(run_folders(finished)[0]), said
    record = {s["name"]: s for s in stages(last)}
    if stage == "train":
        assert record["train baseline_text"]["resumed_from_step"] >= 4
    if stage == "teach":
        assert 8 <= record["teach"]["resumed_after_rows"] < 40
    if stage in {"heal", "evaluate"}:
        assert record["train student"]["reused"]


def test_a_damaged_shard_is_named_taken_out_and_asked_again(finished, arguments, tmp_path):
    start(tmp_path, *arguments, "until=teach").communicate(timeout=200)
    (shard,) = (tmp_path / "outputs/store/responses").glob("*/shard-00000.bin")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:])
    process = start(tmp_path, *arguments, "until=train")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1 and "Traceback" not in said, said
    said = " ".join(said.split())
    assert "shard-00000.bin is damaged" in said and "asks the teacher for these rows again" in said
    assert not shard.exists()
    _, said = start(tmp_path, *arguments).communicate(timeout=400)
    assert shard.read_bytes() == whole
    assert numbers(run_folders(tmp_path)[-1]) == numbers(run_folders(finished)[0]), said


def test_a_package_that_says_something_else_fails_the_run(finished, arguments):
    before = run_folders(finished)
    process = start(finished, *arguments, "compression.bnb_nf4.max_kl_nats=1e-12")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "bnb_nf4" in said and "1e-12 is allowed" in said and "Traceback" not in said
    (new,) = set(run_folders(finished)) - set(before)
    failed = {p["package"]: p["verified"] for p in json.loads((new / "verification.json").read_text())}
    assert failed["bnb_nf4"] is False and failed["gguf_q8_0"] is True
    assert (new / "report.html").exists()
    assert {m["name"]: m.get("verified") for m in json.loads((new / "scores.json").read_text())["models"]}[
        "bnb_nf4"
    ] is False


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_adapters_train_and_their_packages_load(adapter, tiny_teacher, tiny_run_arguments, tmp_path):
    overrides = ["student=pretrained", f"student.model={tiny_teacher}", f"adapter={adapter}"]
    packages = ["bf16", "lora"] if adapter == "lora" else ["bf16"]
    overrides += [f"compression=[{','.join(packages)}]", *(f"compression.{p}.max_kl_nats=5" for p in packages)]
    overrides += ["baselines=[]", "teacher.live=true", "loss=reverse_kl"]
    kept = [a for a in tiny_run_arguments if not a.startswith("student.")]
    process = start(tmp_path, *kept, *overrides)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    scores = numbers(run_folders(tmp_path)[0])
    assert all(scores[name][-1] for name in packages)
    if adapter == "lora":  # what users download, and what they need beside it
        (run,) = run_folders(tmp_path)
        entry = next(m for m in json.loads((run / "scores.json").read_text())["models"] if m["name"] == "lora")
        assert entry["base_bytes"] == (tiny_teacher / "model.safetensors").stat().st_size
        assert (run / "packages/lora/adapter_model.safetensors").stat().st_size < entry["bytes"] < entry["base_bytes"]
    assert scores["student"][3]["kl_to_teacher_nats"] < 0.2, "the student started as its teacher"


def test_what_is_not_scored_and_what_was_trained_on_is_said(tmp_path, tiny_run_arguments):
    rows = [{"prompt": f"What is {n} + {n}?", "response": str(2 * n)} for n in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = [*rows[:2], {"prompt": "What is 50 + 50?", "response": ""}, {"prompt": "And 7 - 7?", "response": "0"}]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    typed = ["data=local", "data.path=train.jsonl", "data.eval_path=eval.jsonl", "training.max_steps=2"]
    typed.append("evaluation.compare=text")
    kept = [
        text for text in tiny_run_arguments if not text.startswith(("data.", "training.max_steps", "training.save"))
    ]
    ended = start(tmp_path, *kept, *typed, "baselines=[]", "compression=[bf16]", "compression.bf16.max_kl_nats=5")
    _, said = ended.communicate(timeout=400)
    assert ended.returncode == 0, said
    (run,) = run_folders(tmp_path)
    for place in (said, (run / "logbook.md").read_text()):
        assert place.count("2 of 4 evaluation rows ask what training rows ask") == 1
        assert place.count("1 of 4 evaluation rows (exact_match) have no answer to compare with") == 1
    models = json.loads((run / "scores.json").read_text())["models"]
    assert [model["name"] for model in models] == ["teacher", "student", "bf16"]
    assert all(model["scored_rows"] == dict.fromkeys(model["scores"], 3) for model in models), models
    # nothing of this run is older: no reason names a sibling
    assert "changed" not in said
