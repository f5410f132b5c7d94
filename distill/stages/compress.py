"""compress: student (+ responses) → one package for each compression."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distill.artifact import write_whole
from distill.compression import Compression
from distill.compression.gguf_q4_k_m import GgufQ4KM
from distill.recipe import Recipe
from distill.stages._rows import Said

if TYPE_CHECKING:
    import numpy as np

VERSION = 1
"""Part of the fingerprint: raise it when the same settings give another package."""


def reads_responses(compression: Compression) -> bool:
    """Whether the package depends on what the teachers answered, beside the student."""
    return compression.heals or (isinstance(compression, GgufQ4KM) and compression.calibration_rows > 0)


def settings(recipe: Recipe, compression: Compression) -> dict[str, Any]:
    """What decides the package, beside the student (and, where they are read, the responses)."""
    kept = asdict(compression)
    kept.pop("max_kl_nats")  # judged by verify, changes nothing that is made
    if not compression.heals:
        kept |= {"max_length": recipe.training.max_length} if reads_responses(compression) else {}
        return {"version": VERSION, **kept}
    training = asdict(recipe.training)
    healed_with = {name: training[name] for name in ("batch_size", "prompt_weight", "max_length", "bf16")}
    return {"version": VERSION, **kept, "loss": asdict(recipe.loss), "training": healed_with, "seed": recipe.seed}


def make_package(
    recipe: Recipe,
    compression: Compression,
    student: Path,
    said: Sequence[Said],
    folder: Path,
) -> Mapping[str, Any]:
    """Fills `folder/package` and notes.json; a compression that heals goes on training from its last checkpoint."""
    package = folder / "package"
    if not compression.heals:
        package.mkdir(exist_ok=True)
        if isinstance(compression, GgufQ4KM) and compression.calibration_rows:
            importance = _importance(recipe, compression.calibration_rows, student, said)
            notes = compression.make(student, package, importance)
        else:
            notes = compression.make(student, package)
        write_whole(folder / "notes.json", json.dumps(notes or []))
        return {}
    if not (folder / "base-is-made").exists():
        package.mkdir(exist_ok=True)
        compression.make(student, package)
        (folder / "base-is-made").touch()
    measured = _heal(recipe, compression, student, said, folder)
    (folder / "base-is-made").unlink()
    return measured


def _importance(recipe: Recipe, num_rows: int, student: Path, said: Sequence[Said]) -> "Mapping[str, np.ndarray]":
    """See `importance_of`; of so many rows, spread evenly over all that the student learned from."""
    from distill.encoding import load_tokenizer
    from distill.stages._importance import importance_of
    from distill.stages._rows import token_rows

    rows = token_rows(said, load_tokenizer(student), max_length=recipe.training.max_length).rows
    chosen = [rows[len(rows) * number // num_rows] for number in range(num_rows)] if len(rows) > num_rows else rows
    return importance_of(student, [row.read()[0].tolist() for row in chosen])


def _heal(recipe: Recipe, compression, student: Path, said: Sequence[Said], folder: Path) -> Mapping[str, Any]:
    """Trains an adapter on the quantised package with the recipe's loss and targets; see `_save_adapter`."""
    from distill.encoding import load_tokenizer
    from distill.stages._batches import plan_batches
    from distill.stages._threads import same_threads
    from distill.stages._trainer import train, write_curve
    from distill.stages.train import live_teacher, rows_to_learn

    if (folder / "curve.jsonl").exists():  # killed between the last file and the seal
        shutil.rmtree(folder / "trainer", ignore_errors=True)
        return {}
    for half_written in (folder / "package").glob("adapter_*"):
        half_written.unlink()  # the base would be loaded with it
    tokenizer = load_tokenizer(student)
    training = replace(
        recipe.training,
        learning_rate=compression.learning_rate,
        max_steps=compression.max_steps,
        warmup_steps=compression.max_steps // 10,
        weight_decay=0.0,
        dropout=0.0,
    )
    made = rows_to_learn(recipe, "student", said, tokenizer)
    plan = plan_batches(
        made.lengths, batch_size=training.batch_size, seed=recipe.seed, epochs=1, max_steps=compression.max_steps
    )
    model = _with_adapter(compression, student, folder / "package", recipe.seed)
    live = recipe.live and recipe.loss.kind != "text"
    with same_threads(folder):
        trained = train(
            model,
            made.rows,
            recipe.loss,
            training,
            plan,
            seed=recipe.seed,
            pad_id=cast(int, tokenizer.pad_token_id),
            folder=folder / "trainer",
            label="heal",
            live_teacher=live_teacher(recipe) if live else None,
        )
    _save_adapter(model, folder / "package")
    write_curve(folder / "curve.jsonl", trained.curve)
    shutil.rmtree(folder / "trainer")  # last: until here a killed run can go on from its checkpoints
    return {"resumed_from_step": trained.resumed_from_step}


def _with_adapter(compression, student: Path, base: Path, seed: int) -> Any:
    """The quantised base, as a `PeftModel`, with a LoRA that starts as the best low-rank fit of the rounding error."""
    import torch
    from safetensors.torch import load_file

    from distill.runtime.bnb import residual_lora_init
    from distill.runtime.hf import load_model

    model = load_model(base)
    from peft import LoraConfig, get_peft_model  # after the model: peft imports bitsandbytes, which load_model quiets

    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=compression.rank, lora_alpha=compression.alpha, target_modules="all-linear"
    )
    adapted = get_peft_model(model, config)
    state = {name: tensor for file in sorted(student.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    residual_lora_init(adapted, state)
    return adapted


def _save_adapter(model: Any, package: Path) -> None:
    """The adapter at the package's root, beside config.json.

    There plain `from_pretrained(package)` loads base and adapter; from a folder of its own it would silently give
    the model before healing.
    """
    model.save_pretrained(package, save_embedding_layers=False)
    file = package / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = None  # peft wrote a path; the package is its own base
    write_whole(file, json.dumps(config, indent=2))
    # peft's empty card, which names that path too; ours comes with the report
    (package / "README.md").unlink(missing_ok=True)
