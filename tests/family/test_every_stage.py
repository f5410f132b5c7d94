"""A tiny random model of every family, with a tokenizer of its own kind, goes through every stage.

Its loss and its hidden states are compared with what the model itself says: transformers' own forward, with its own
head, scales and caps, and the divergence from its definition in float64.
"""

import json
from pathlib import Path

import pytest

from distill.data.word_problems import WordProblems
from distill.family.known import FAMILIES, config_of
from distill.family.tiny import tiny_config
from distill.family.tiny_tokenizer import train_like
from tests.small_models import random_model

VOCAB_SIZE = 420
PADDING = 7
"""Rows of the embedding beyond the tokenizer, in families that publish such."""
ROWS, EVALUATION_ROWS = 24, 6

MERE_NUMBERS = {"max_position_embeddings", "intermediate_size", "rms_norm_eps"}

# Measured at most on GPT-2, GPT-Neo and OPT: 3.1e-4, 6.8e-4, 0.12, 0.055; the merged adapter is the student but for
# rounding (1e-8). Widths of 64 are harder on int8 than real ones.
MAX_KL_NATS = {"bf16": 2e-3, "bnb_int8": 0.02, "bnb_nf4": 0.5, "bnb_nf4_lora": 0.5, "gguf_q8_0": 0.02, "lora": 1e-4}


def architectures():
    """(family, tiny config.json) for every one that computes differently from the others of its family."""
    for family in FAMILIES:
        known = []
        for checkpoint in family.published:
            config = tiny_config({"model_type": family.model_type, **checkpoint.config}, VOCAB_SIZE)
            switches = {key: value for key, value in config.items() if key not in MERE_NUMBERS}
            switches["rope_parameters"] = str(switches.get("rope_parameters", {}).get("rope_type"))
            if switches not in known:
                known.append(switches)
                yield pytest.param(family, config, id=f"{family.name}-{checkpoint.size}")


def pads_its_vocabulary(family):
    return any(0 < p.num_tokens < p.config.get("vocab_size", 0) for p in family.published)


@pytest.fixture(scope="module")
def batch():
    """Two rows, the second shorter: padded at its end, which counts nowhere."""
    import torch

    generator = torch.Generator().manual_seed(3)
    ids_BT = torch.randint(5, VOCAB_SIZE, (2, 19), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 12:] = 0
    labels_BT = torch.full_like(ids_BT, -100)
    labels_BT[:, 4:-1] = ids_BT[:, 5:]
    labels_BT[1, 11:] = -100
    weights_BT = torch.rand(ids_BT.shape, generator=generator) + 0.5
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT, "weights": weights_BT}


@pytest.mark.parametrize(("family", "config"), architectures())
def test_hidden_states_times_the_head_are_the_models_own_logits(family, config, batch):
    import torch

    from distill.family.head import hidden_states, output_head

    model = random_model(config, 0)
    with torch.no_grad():
        hidden_BTD = hidden_states(model, batch["input_ids"], batch["attention_mask"])
        own_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        ours_BTV = output_head(model).logits(hidden_BTD)
    assert own_BTV.std() > 0.1
    assert torch.equal(ours_BTV, own_BTV)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "text"])
@pytest.mark.parametrize(("family", "config"), architectures())
def test_the_fused_loss_is_that_of_the_models_own_logits(family, config, kind, batch):
    """Loss and gradient of the step that trains, against the definition on full logits in float64."""
    import torch

    from distill.recipe import options_of
    from distill.stages._step import Step

    student, teacher = random_model(config, 1), random_model(config, 0)
    loss = options_of("loss")[kind](kind=kind)
    fused = Step(student, loss, teacher=None if kind == "text" else teacher, bf16=False)(batch)
    weight = next(parameter for parameter in student.parameters() if parameter.ndim == 2)
    (gradient,) = torch.autograd.grad(fused, weight)

    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        p = teacher(**inputs).logits.double().log_softmax(-1)
    q = student(**inputs).logits.double().log_softmax(-1)
    counted = batch["labels"] != -100
    if kind == "text":
        each = -q.gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    else:
        each = (p.exp() * (p - q)).sum(-1) if kind == "forward_kl" else (q.exp() * (q - p)).sum(-1)
    expected = (each * batch["weights"])[counted].sum()
    (expected_gradient,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(fused.double(), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4 * expected_gradient.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_adapters_reach_the_layers_that_the_facts_name(family):
    import torch

    model = random_model(tiny_config({"model_type": family.model_type, **family.published[0].config}, VOCAB_SIZE), 0)
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if module is not head and (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
    }
    assert set(family.lora_targets) == linear


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_attention_implementations_are_those_that_transformers_accepts(family):
    config = tiny_config({"model_type": family.model_type, **family.published[0].config}, VOCAB_SIZE)
    model = type(random_model(config, 0))
    has = {"eager": True, "sdpa": model._supports_sdpa, "flash_attention_2": model._supports_flash_attn}
    assert {name for name, there in has.items() if there} == set(family.attention)


@pytest.fixture(scope="module")
def rows():
    examples = WordProblems(kind="word_problems", num_rows=200).load().train
    return [{"prompt": e.prompt, "response": e.response} for e in list(examples)[: ROWS + EVALUATION_ROWS]]


def checkpoints():
    """(family, checkpoint) to take through every stage: of each family the last published, which differs most from
    transformers' defaults, and the one OPT that narrows its embeddings."""
    for family in FAMILIES:
        chosen = [family.published[-1], *(p for p in family.published if p.model == "facebook/opt-350m")]
        yield from (pytest.param((family, checkpoint), id=f"{family.name}-{checkpoint.size}") for checkpoint in chosen)


@pytest.fixture
def folders(request, rows, tmp_path, monkeypatch):
    """Teacher and student of a family, and the data; the store lies beside them."""
    family, checkpoint = request.param
    monkeypatch.setenv("DISTILL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the fresh process that verifies: threads that wait spin
    texts = [text for row in rows for text in row.values()]
    tokenizer = train_like(family, texts, VOCAB_SIZE)
    size = len(tokenizer) + (PADDING if pads_its_vocabulary(family) else 0)
    config = tiny_config({"model_type": family.model_type, **checkpoint.config}, size)
    for seed, role in enumerate(("teacher", "student")):
        random_model(config, seed).save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
    for name, part in {"train": rows[:ROWS], "evaluation": rows[ROWS:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path


def run(folders: Path, name: str, **changed) -> tuple[Path, dict]:
    """Runs one recipe in this process; (its run folder, stage name → line of the record)."""
    from distill.pipeline import run as run_recipe
    from distill.recipe import parse

    teacher = {"kind": "hf", "model": str(folders / "teacher"), "max_new_tokens": 8, "batch_size": 8}
    recipe = {
        "name": name,
        "data": {
            "kind": "local",
            "path": str(folders / "train.jsonl"),
            "eval_path": str(folders / "evaluation.jsonl"),
        },
        "student": {"kind": "pretrained", "model": str(folders / "student")},
        "loss": {"kind": "forward_kl"},
        "adapter": {"kind": "none"},
        "training": {"batch_size": 8, "max_steps": 2, "max_length": 96, "warmup_steps": 0, "learning_rate": 1e-3},
        "evaluation": {"kind": "exact_match", "max_new_tokens": 4, "positions": 60},
        "tracking": {"kind": "none"},
        **changed,
        "teacher": teacher | changed.pop("teacher", {}),
    }
    folder = folders / name
    folder.mkdir()
    run_recipe(parse(recipe), folder)
    record = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    return folder, {line["name"]: line for line in record if line["event"] == "stage"}


def allowed(folders: Path) -> dict[str, dict]:
    """Every compression that does not refuse this family and its tokenizer, as a recipe names it."""
    from distill.recipe import options_of

    config = config_of(str(folders / "student"), None, "student.model")
    chosen = {}
    for name, option in options_of("compression").items():
        settings = {"kind": name, "max_kl_nats": MAX_KL_NATS.get(name, 0.5)}
        made = option(**settings)
        if made.refuse(config) is None and made.refuse_tokenizer(folders / "student") is None:
            chosen[name] = settings | ({"max_steps": 2} if made.heals else {})
    return chosen


def kind_of_targets(folders: Path, stages: dict) -> str:
    """What the teach stage's store holds."""
    (header,) = (folders / "store/responses").glob(f"{stages['teach']['fingerprint']}*/header.json")
    return json.loads(header.read_text())["kind"]


def with_an_adapter(folders: Path) -> tuple[Path, dict]:
    """A run of top-k targets with every compression that is allowed, all verified; its folder, and scores by model.

    Every package is of an adapter's student, so that one fresh process verifies all of them.
    """
    compressions = allowed(folders)
    assert set(compressions) >= {"bf16", "bnb_int8", "bnb_nf4", "bnb_nf4_lora", "lora"}
    folder, stages = run(
        folders,
        "lora",
        teacher={"targets": "top_k", "top_k": 8},
        loss={"kind": "jsd"},
        adapter={"kind": "lora"},
        compression=compressions,
    )
    assert kind_of_targets(folders, stages) == "top_k"
    models = {model["name"]: model for model in json.loads((folder / "scores.json").read_text())["models"]}
    assert set(models) == {"teacher", "student", *compressions}
    assert all(models[name]["verified"] for name in compressions)
    return folder, models


BF16 = {"compression": {"bf16": {"kind": "bf16"}}}


@pytest.mark.slow
@pytest.mark.parametrize("folders", checkpoints(), indirect=True)
def test_a_family_goes_through_every_stage(folders):
    folder, models = with_an_adapter(folders)
    assert all(0 < model["scores"]["bits_per_byte"] < 100 for model in models.values())
    proofs = {proof["package"]: proof for proof in json.loads((folder / "verification.json").read_text())}
    assert proofs["bf16"]["kl_to_student_nats"] < proofs["bnb_nf4"]["kl_to_student_nats"]

    folder, stages = run(folders, "full", teacher={"targets": "sampled", "draws": 8}, until="compress", **BF16)
    assert kind_of_targets(folders, stages) == "sampled"
    assert trained(folder), "every weight that takes part must have moved"

    _, stages = run(folders, "qlora", loss={"kind": "text"}, adapter={"kind": "qlora"}, until="compress", **BF16)
    assert kind_of_targets(folders, stages) == "tokens"


def trained(folder: Path) -> bool:
    """Whether a training of all weights moved every matrix of the student's body."""
    from safetensors.torch import load_file

    before = load_file(folder.parent / "student/model.safetensors")
    after = load_file(folder / "packages/bf16/model.safetensors")
    assert before.keys() == after.keys()
    moved = {name: not before[name].bfloat16().equal(after[name]) for name in before if before[name].ndim == 2}
    return all(moved.values())
