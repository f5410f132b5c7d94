"""compress: student (+ responses) → one package for each compression."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distill.artifact import write_whole
from distill.compression import Compression
from distill.compression._gguf_student import GgufOption
from distill.compression.gguf_q4_k_m import GgufQ4KM
from distill.distributed import world
from distill.recipe import Recipe
from distill.stages._about import about
from distill.stages._rows import Said

if TYPE_CHECKING:
    import numpy as np

VERSION = 2
"""Part of the fingerprint: raise it when the same settings give another package."""


def reads_responses(compression: Compression) -> bool:
    """Whether the package depends on what the teachers answered, beside the student."""
    return compression.heals or (isinstance(compression, GgufQ4KM) and compression.calibration_rows > 0)


def settings(recipe: Recipe, compression: Compression) -> dict[str, Any]:
    """What decides the package, beside the student (and, where they are read, the responses)."""
    kept = asdict(compression)
    kept.pop("max_kl_nats")  # judged by verify, changes nothing that is made
    if isinstance(compression, GgufOption):
        kept["about"] = asdict(about(recipe))
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
    """Fills `folder/package`, and notes.json of one that is made at once.

    One that heals is trained: it goes on from its last checkpoint, and all processes call this.
    """
    if compression.heals:
        return _heal(recipe, compression, student, said, folder)
    package = folder / "package"
    package.mkdir(exist_ok=True)
    more: dict[str, Any] = {"about": about(recipe)} if isinstance(compression, GgufOption) else {}
    if isinstance(compression, GgufQ4KM) and compression.calibration_rows:
        more["importance"] = _importance(recipe, compression.calibration_rows, student, said)
    notes = compression.make(student, package, **more)
    write_whole(folder / "notes.json", json.dumps(notes or []))
    return {}


def _importance(recipe: Recipe, num_rows: int, student: Path, said: Sequence[Said]) -> "Mapping[str, np.ndarray]":
    """See `importance_of`; of so many rows, spread evenly over all that the student learned from."""
    from distill.encoding import load_tokenizer
    from distill.stages._importance import importance_of
    from distill.stages._rows import token_rows

    rows = token_rows(said, load_tokenizer(student), max_length=recipe.training.max_length).rows
    chosen = [rows[len(rows) * number // num_rows] for number in range(num_rows)] if len(rows) > num_rows else rows
    return importance_of(student, [row.read()[0].tolist() for row in chosen])


def _heal(recipe: Recipe, compression, student: Path, said: Sequence[Said], folder: Path) -> Mapping[str, Any]:
    """Trains an adapter on the quantised package with the recipe's loss and targets; see `_save_adapter`.

    Each of several processes holds the four-bit student, whatever `training.sharding` is: its scales belong to whole
    rows, and it takes an eighth of what the student took while it was trained.
    """
    from distill.encoding import load_tokenizer
    from distill.stages._batches import plan_batches
    from distill.stages._threads import same_threads
    from distill.stages._trainer import train, write_curve
    from distill.stages.train import live_teacher, rows_to_learn

    together, package = world(), folder / "package"
    if together.share((folder / "curve.jsonl").exists()):  # killed between the last file and the seal
        if together.leads:
            _tidy(folder)
        return {}
    tokenizer = load_tokenizer(student)
    training = replace(
        recipe.training,
        learning_rate=compression.learning_rate,
        max_steps=compression.max_steps,
        warmup_steps=compression.max_steps // 10,
        weight_decay=0.0,
        dropout=0.0,
        sharding="none",
    )
    made = rows_to_learn(recipe, "student", said, tokenizer)
    plan = plan_batches(
        made.lengths, batch_size=training.batch_size, seed=recipe.seed, epochs=1, max_steps=compression.max_steps
    )
    if together.size > 1:
        together.connect()  # before anything is loaded: it says which GPU is this process's
    if together.leads:
        _make_base(compression, student, folder)
    together.wait()
    model = _with_adapter(compression, student, package, recipe.seed, starts=together.leads)
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
            together=together,
        )
    measured = {"resumed_from_step": trained.resumed_from_step, "world_size": together.size}
    if together.size > 1:
        measured["sharding"] = "none"
    if together.leads:
        _save_adapter(model, package)
        write_curve(folder / "curve.jsonl", trained.curve)
        _tidy(folder)  # last: until here a killed run can go on from its checkpoints
    return measured


def _make_base(compression, student: Path, folder: Path) -> None:
    """The quantised package without an adapter, made once; what of an adapter was half written is gone."""
    package, is_made = folder / "package", folder / "base-is-made"
    if not is_made.exists():
        package.mkdir(exist_ok=True)
        compression.make(student, package)
        is_made.touch()
    for half_written in package.glob("adapter_*"):
        half_written.unlink()  # the base would be loaded with it


def _tidy(folder: Path) -> None:
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    (folder / "base-is-made").unlink(missing_ok=True)


def _with_adapter(compression, student: Path, base: Path, seed: int, *, starts: bool) -> Any:
    """The quantised base as a `PeftModel`. Its LoRA `starts` as the best low-rank fit of the rounding error.

    Of several processes one decomposes that error: DDP gives the others its weights before the first step.
    """
    import torch

    from distill.runtime._stored import Stored
    from distill.runtime.bnb import residual_lora_init
    from distill.runtime.hf import load_model

    model = load_model(base)
    from peft import LoraConfig, get_peft_model  # after the model: peft imports bitsandbytes, which load_model quiets

    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=compression.rank, lora_alpha=compression.alpha, target_modules="all-linear"
    )
    adapted = get_peft_model(model, config)
    if starts:
        residual_lora_init(adapted, Stored(student))
    return adapted


def _save_adapter(model: Any, package: Path) -> None:
    """The adapter at the package's root, beside config.json.

    There plain `from_pretrained(package)` loads base and adapter; from a folder of its own it would silently give
    the model before healing.
    """
    from distill.runtime._adapter_names import name_base

    model.save_pretrained(package, save_embedding_layers=False)
    name_base(package, None)  # the package is its own base
    # peft's empty card, which names a path of this machine; ours comes with the report
    (package / "README.md").unlink(missing_ok=True)
