"""Kinds of teachers and of targets through the real command: who is asked, how often, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from distill import _hydra
from distill.checks import check
from distill.errors import RecipeError
from distill.recipe import parse
from distill.record import RunRecord
from distill.responses import TeacherResponses
from distill.workspace import Workspace
from tests.stages.asking import another
from tests.test_bad_input import refused

ROUTED = """# @package _global_
# two teachers, each asked about its own rows
defaults:
  - override /data: local
  - override /teacher: routed
  - override /student: scratch
  - override /loss: forward_kl
  - override /compression: []
name: routed
data: {{path: rows.jsonl, teacher_field: expert}}
teacher:
  teachers:
    adds: {{kind: hf, model: {adds}, max_new_tokens: 6, batch_size: 8}}
    tells: {{kind: hf, model: {tells}, max_new_tokens: 6, batch_size: 8}}
student: {{hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 1}}
training: {{max_steps: 4, batch_size: 8, max_length: 128}}
evaluation: {{max_new_tokens: 4, positions: 60}}
"""


@pytest.fixture(scope="module")
def second(tiny_teacher, tmp_path_factory):
    """Another random checkpoint with the tiny teacher's tokenizer."""
    return another(tiny_teacher, tmp_path_factory.mktemp("second") / "second", seed=5, num_hidden_layers=2)


@pytest.fixture
def arguments(tiny_run_arguments):
    """Without packages and baselines, and with the targets that each loss has by default."""
    return [*tiny_run_arguments, "teacher.targets=auto", "compression=[]", "baselines=[]"]


@pytest.fixture
def pretrained(arguments, second):
    kept = [a for a in arguments if not a.startswith(("student.", "teacher.targets"))]
    return [*kept, "student=pretrained", f"student.model={second}", "training.bf16=false"]


@pytest.fixture
def routed(tmp_path, tiny_teacher, second):
    """The recipe of two teachers; 30 rows, of which every third is for `tells`."""
    rows = [{"prompt": f"How much is {n} + 1?", "response": f"#### {n + 1}", "expert": "adds"} for n in range(30)]
    for row in rows[::3]:
        row["expert"] = "tells"
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "routed.yaml").write_text(ROUTED.format(adds=tiny_teacher, tells=second))
    return "recipe=routed.yaml"


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def done(run, *arguments, **options):
    ran = run(*arguments, OMP_NUM_THREADS="1", **options)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
    return ran.stderr


def runs(tmp_path, recipe="quickstart"):
    """Of each run, oldest first: stage → its line of the record."""
    records = []
    for folder in sorted((tmp_path / "outputs" / recipe).iterdir()):
        lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
        records.append({line["name"]: line for line in lines if line["event"] == "stage"})
    return records


def stores(tmp_path):
    """Oldest first."""
    folders = (tmp_path / "outputs/store/responses").glob("*/summary.json")
    return [TeacherResponses(f.parent) for f in sorted(folders, key=lambda f: f.stat().st_mtime_ns)]


def curve(tmp_path, record):
    lines = (tmp_path / record["train student"]["made"] / "curve.jsonl").read_text().splitlines()
    return [json.loads(line)["loss_nats"] for line in lines]


def checked(*overrides):
    return check(parse(_hydra.compose(list(overrides)).config))


@pytest.mark.slow
def test_the_frozen_head_trains_as_the_whole_distribution_does(run_cli, tmp_path, pretrained):
    """Both are exact, so in float32 one curve is the other but for what float16 and bfloat16 lose in the store."""
    for targets in ("frozen_head", "dense"):
        done(run_cli, *pretrained, "adapter=lora", f"teacher.targets={targets}", "until=train")
    frozen, dense = (curve(tmp_path, run) for run in runs(tmp_path))
    assert len(frozen) == len(dense) == 7 and dense[-1] < 0.97 * dense[0]
    np.testing.assert_allclose(frozen, dense, rtol=0.01)
    assert frozen != dense
    kinds = [(store.header.kind, store.header.kept) for store in stores(tmp_path)]
    assert kinds == [("frozen_head", 64), ("dense", 0)]
    texts = [[store[n].text for n in range(len(store))] for store in stores(tmp_path)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_each_of_two_teachers_is_asked_about_its_rows_alone(run_cli, tmp_path, routed, tiny_teacher):
    done(run_cli, routed, "until=train")
    (first,) = runs(tmp_path, "routed")
    assert [first[f"teach {name}"]["reused"] for name in ("adds", "tells")] == [False, False]
    told = {store.header.teacher: len(store) for store in stores(tmp_path)}
    held_out = 3  # a tenth, for evaluation
    assert (
        sum(told.values()) == 30 - held_out and 7 <= told["second"] <= 10 and told.keys() == {"second", "tiny_teacher"}
    )
    assert json.loads((tmp_path / first["train student"]["made"] / "training.json").read_text())["rows"] == sum(
        store.summary["sources"].get("teacher", 0) + store.summary["sources"].get("teacher, cut", 0)
        for store in stores(tmp_path)
    )
    (recipe,) = (tmp_path / "outputs/routed").glob("*/recipe.yaml")
    shutil.copy(recipe, tmp_path / "again.yaml")
    done(run_cli, "recipe=again.yaml", "teacher.teachers.tells.max_new_tokens=5", "until=teach")
    _, second = runs(tmp_path, "routed")
    assert (second["teach adds"]["reused"], second["teach tells"]["reused"]) == (True, False)
    assert "max_new_tokens" in second["teach tells"]["why"]
    assert len(stores(tmp_path)) == 3


@pytest.mark.slow
def test_a_student_with_its_own_words_learns_from_aligned_spans(run_cli, tmp_path, arguments):
    overrides = ["loss=aligned", "student.vocab_size=320", "training.max_steps=40", "training.learning_rate=0.01"]
    overrides += ["compression=[bf16]", "compression.bf16.max_kl_nats=5", "baselines=[baseline_text]"]
    done(run_cli, *arguments, *overrides)
    (record,) = runs(tmp_path)
    points = curve(tmp_path, record)
    assert points[-1] < 0.8 * points[0] and np.isfinite(points).all()
    (store,) = stores(tmp_path)
    assert (store.header.kind, store.header.vocab_size, store.header.target_temperature) == ("next", 384, 1.0)
    (run,) = (tmp_path / "outputs/quickstart").iterdir()
    models = {m["name"]: m for m in json.loads((run / "scores.json").read_text())["models"]}
    assert models["bf16"]["verified"] and list(models) == ["teacher", "baseline_text", "student", "bf16"]
    for name, model in models.items():
        # there is no divergence between distributions over different tokens, and so none is made up
        assert "kl_to_teacher_nats" not in model["scores"] and model["scores"]["bits_per_byte"] > 0, name
    assert json.loads((run / "packages/bf16/config.json").read_text())["vocab_size"] <= 320


@pytest.mark.slow
def test_other_targets_and_temperatures_are_asked_once_and_say_why(run_cli, tmp_path, arguments):
    """Sampled by default; jsd asks for top-k, a sweep over both losses takes that; temperature 2 asks again."""
    done(run_cli, *arguments, "until=train")
    done(run_cli, *arguments[:-3], "teacher.targets=top_k", *arguments[-2:], "-m", "loss=jsd,forward_kl", "until=train")
    done(run_cli, *arguments, "loss.temperature=2", "until=train")
    sampled, jsd, top_k, tempered = runs(tmp_path)
    assert [run["teach"]["reused"] for run in (sampled, jsd, top_k, tempered)] == [False, False, True, False]
    assert "targets" in jsd["teach"]["why"] and "temperature" in tempered["teach"]["why"]
    headers = [store.header for store in stores(tmp_path)]
    assert [(h.kind, h.target_temperature) for h in headers] == [("sampled", 1.0), ("top_k", 1.0), ("sampled", 2.0)]
    first, *others = stores(tmp_path)
    for number in range(len(first)):
        assert all(np.array_equal(other[number].input_ids_T, first[number].input_ids_T) for other in others)
    curves = [curve(tmp_path, run) for run in (sampled, jsd, top_k, tempered)]
    assert np.isfinite(curves).all() and len({tuple(c) for c in curves}) == 4


@pytest.mark.slow
def test_the_students_own_answers_are_scored_in_turn_or_live(run_cli, tmp_path, arguments):
    """All 384 tokens are kept, so a teacher that scores in turn says what a live one does, but for rounding."""
    own = ["training.on_policy=0.5", "training.on_policy_rounds=2", "training.on_policy_max_new_tokens=8"]
    own += ["loss=reverse_kl", "teacher.top_k=384", "training.bf16=false"]
    done(run_cli, *arguments, *own, "until=evaluate")
    done(run_cli, *arguments, *own, "teacher.live=true", "until=train")
    in_turn, live = runs(tmp_path)
    (run, _) = sorted((tmp_path / "outputs/quickstart").iterdir())
    student = json.loads((run / "scores.json").read_text())["models"][-1]
    assert student["name"] == "student" and 0 < student["scores"]["kl_to_teacher_nats"] < 20
    assert in_turn["teach"]["reused"] is False and live["train student"]["reused"] is False
    points = curve(tmp_path, in_turn), curve(tmp_path, live)
    assert np.isfinite(points).all()
    np.testing.assert_allclose(*points, rtol=0.02)
    assert points[0] != points[1]


def test_a_head_that_is_trained_is_not_frozen(run_cli, tmp_path, pretrained):
    words = ["frozen_head", "adapter=lora", "student=pretrained", "sampled"]
    refused(run_cli, tmp_path, *pretrained, "adapter=none", "teacher.targets=frozen_head", words=words)


def test_rows_for_an_unknown_teacher(run_cli, tmp_path, routed):
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "?", "response": "!", "expert": "ads"}) + "\n")
    rows = ["data.eval_path=rows.jsonl"]
    refused(run_cli, tmp_path, routed, *rows, words=["data.teacher_field", "ads", "adds, tells", "teacher.teachers"])


def test_teachers_of_other_tokens(tmp_path, routed, tiny_teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "foreign"
    shutil.copytree(tiny_teacher, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RecipeError, match=r"tokenizers(.|\n)*tiny_teacher(.|\n)*foreign(.|\n)*loss=text"):
        checked(routed, f"teacher.teachers.tells.model={other}")


def test_distributions_of_a_large_vocabulary_are_too_many_numbers(run_cli, tmp_path, tiny_teacher):
    large = tmp_path / "large"
    shutil.copytree(tiny_teacher, large)
    config = json.loads((large / "config.json").read_text())
    (large / "config.json").write_text(json.dumps({**config, "vocab_size": 32000}))
    words = ["teacher.targets=dense", "64,000 bytes", "32,000", "8,192", "sampled", "top_k"]
    refused(run_cli, tmp_path, f"teacher.model={large}", "teacher.targets=dense", words=words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss=aligned", "teacher.live=true"], ["loss=aligned", "teacher.live"]),
        (["loss=aligned", "training.on_policy=0.5"], ["loss=aligned", "training.on_policy"]),
        (["loss=text", "training.on_policy=0.5"], ["training.on_policy", "loss=text", "reverse_kl"]),
        (["loss=reverse_kl", "teacher.targets=sampled"], ["sampled", "reverse_kl", "top_k"]),
        (["loss=jsd", "teacher.targets=sampled", "training.on_policy=1"], ["sampled", "jsd", "top_k"]),
        (["loss=jsd", "teacher.targets=frozen_head"], ["frozen_head", "jsd", "top_k"]),
        (["training.on_policy=1.5"], ["training.on_policy", "less than or equal to 1"]),
        (["teacher.samples=3"], ["samples=3", "temperature"]),
        (["teacher=none", "training.on_policy=0.5"], ["teacher"]),
    ],
)
def test_what_does_not_go_together(overrides, words, arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as refused:
        checked(*arguments, *overrides)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.on_policy=0.5"], ["training.on_policy", "one teacher"]),
        (["teacher.teachers.adds.live=true"], ["teachers.adds.live"]),
        (["data.teacher_field=null"], ["teacher=routed", "data.teacher_field"]),
        (["teacher.teachers.adds.targets=top_k", "teacher.teachers.tells.targets=dense"], ["dense and top_k"]),
        pytest.param(
            ["teacher.teachers.tells.draws=7"],
            ["same targets"],
        ),
        pytest.param(
            ["teacher.teachers.tells.model=FOREIGN", "loss=aligned"],
            ["tokenizer"],
        ),
    ],
)
def test_what_two_teachers_cannot_do(overrides, words, routed, shared_data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    overrides = [override.replace("FOREIGN", str(shared_data / "stories260k")) for override in overrides]
    with pytest.raises(RecipeError) as refused:
        checked(routed, *overrides)
    assert all(word in str(refused.value) for word in words), refused.value


def test_evaluation_rows_need_no_teacher(routed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "evaluation.jsonl", [{"prompt": "How much is 1 + 1?", "response": "#### 2"}] * 3)
    assert len(checked(routed, "data.eval_path=evaluation.jsonl").train) == 30


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        pytest.param(
            ["teacher.always_keep=[nonsense]", "loss=jsd"],
            "always_keep",
        ),
        pytest.param(
            ["training.on_policy=0.5", "training.on_policy_max_new_tokens=400", "loss=reverse_kl", "LONG_STUDENT"],
            "192",
        ),
        pytest.param(
            ["PRETRAINED", "adapter=lora", "adapter.target_modules=[lm_head]", "teacher.targets=frozen_head"],
            "tie_word_embeddings",
        ),
        pytest.param(
            ["PRETRAINED", "adapter=lora", "adapter.target_modules=[embed_tokens]", "teacher.targets=frozen_head"],
            "embed_tokens",
        ),
    ],
)
def test_what_is_known_before_the_teacher_is_asked(overrides, word, arguments, pretrained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    long = ["student.max_position_embeddings=512", "training.max_length=512"]
    start = pretrained if "PRETRAINED" in overrides else arguments + (long if "LONG_STUDENT" in overrides else [])
    with pytest.raises(RecipeError, match=word):
        checked(*start, *(override for override in overrides if "=" in override))


def test_a_file_cannot_score_what_a_student_writes(monkeypatch, tmp_path, tiny_teacher):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "said.jsonl", [{"prompt": f"{n}?", "response": "yes"} for n in range(12)])
    teacher = ["teacher=file", "teacher.path=said.jsonl", f"teacher.tokenizer={tiny_teacher}", "data=local"]
    with pytest.raises(RecipeError, match=r"training\.on_policy"):
        checked(*teacher, "data.path=said.jsonl", "baselines=[]", "compression=[]", "loss=jsd", "training.on_policy=1")


def test_answers_that_another_run_is_sealing_are_not_taken(tmp_path):
    scratch = tmp_path / "responses" / "f00.scratch"
    scratch.mkdir(parents=True)
    for name in ("settings.json", "manifest.json"):  # sealed within, and about to be renamed
        (scratch / name).write_text(json.dumps({"settings": {}, "inputs": {}}))
    (tmp_path / "run").mkdir()
    record = RunRecord(tmp_path / "run", recipe="r", seed=0)
    assert Workspace(record, tmp_path).find("responses", lambda settings, inputs: True) is None
