"""train: responses + student → a checkpoint. Also the baselines: the same student, the same number of tokens."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distill.artifact import write_whole
from distill.checkpoint import local_folder, tokenizer_folder
from distill.distributed import world
from distill.encoding import load_tokenizer, prompt_text, template_hash, tokenizer_hash, train_tokenizer
from distill.example import Example
from distill.loss.text import Text
from distill.recipe import Recipe
from distill.stages._threads import same_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from distill.stages._batches import BatchPlan
    from distill.stages._on_policy import OpenTeacher
    from distill.stages._rows import Said, TokenRow, TokenRows
    from distill.stages._trainer import Trained

VERSION = 3
"""Part of the fingerprint: raise it when the same settings give another student."""


def settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """What decides the weights, beside the responses and the checkpoints that are started from."""
    student = asdict(recipe.student)
    if recipe.student.kind == "pretrained":
        student.pop("model")  # its weights are an input
    training = asdict(recipe.training)
    # the first two decide what is seen and kept, the third where the weights lie meanwhile
    del training["logging_steps"], training["save_steps"], training["sharding"]
    return {
        "version": VERSION,
        "student": student,
        "adapter": asdict(recipe.adapter),
        "loss": asdict(recipe.loss) if name == "student" else {"kind": "text"},
        "training": training,
        "data": "own answers" if name == "baseline_no_teacher" else "responses",
        "live": name == "student" and recipe.live,
        "seed": recipe.seed,
    }


def train_student(
    recipe: Recipe,
    name: str,
    examples: Sequence[Example],
    said: "Sequence[Said]",
    folder: Path,
    scorer: "OpenTeacher | None" = None,
) -> Mapping[str, Any]:
    """Trains the student (or a baseline of that name) and leaves `checkpoint/`, `curve.jsonl`, `training.json`.

    `scorer` opens the teacher that scores the student's own answers when `training.on_policy` asks for them.
    Under several processes all of them call this; the leader writes.
    """
    from distill.stages._checkpoints import load_last_checkpoint
    from distill.stages._loading import Source, read_student
    from distill.stages._trainer import write_curve

    together = world()
    done = folder / "training.json"
    if together.share(done.exists()):  # killed between the last file and the seal
        if together.leads:
            _tidy(folder)
        return {}
    tokenizer = student_tokenizer(recipe, examples, said)
    made, plan = rows_and_plan(recipe, name, examples, said, tokenizer)
    if together.size > 1:
        together.connect()  # before anything is loaded: it says which GPU is this process's
    build = partial(_build, recipe, tokenizer, folder)
    model = read_student(Source(lambda _: build(), partial(build, outline=True)), recipe.training.layout, together)
    with same_threads(folder) as threads:
        trained = _trained(recipe, name, model, tokenizer, made.rows, plan, folder, scorer)
    measured = {"resumed_from_step": trained.resumed_from_step, "world_size": together.size}
    if together.size > 1:
        measured["sharding"] = "none" if trained.whole else "full"
    if not together.leads:
        return measured
    if not trained.whole:
        model = _build(recipe, tokenizer, folder)
        load_last_checkpoint(model, folder / "trainer")
    _save(model, tokenizer, recipe, folder / "checkpoint")
    write_curve(folder / "curve.jsonl", trained.curve)
    write_whole(folder / "notes.json", json.dumps(made.notes(recipe.training.max_length)))
    facts = {"steps": plan.steps, "tokens": plan.tokens, "rows": len(made.rows), "threads": threads}
    write_whole(done, json.dumps(facts, indent=1))
    _tidy(folder)  # last: until here a killed run can go on from its checkpoints
    return measured


def rows_and_plan(
    recipe: Recipe,
    name: str,
    examples: Sequence[Example],
    said: "Sequence[Said]",
    tokenizer: "PreTrainedTokenizerBase",
) -> "tuple[TokenRows, BatchPlan]":
    """What the student, or a baseline of that name, learns from, and in which batches."""
    from distill.stages._batches import plan_batches, plan_tokens
    from distill.stages._rows import own_rows

    training = recipe.training
    made = rows_to_learn(recipe, name, said, tokenizer)
    plan = plan_batches(
        made.lengths,
        batch_size=training.batch_size,
        seed=recipe.seed,
        epochs=training.num_train_epochs,
        max_steps=training.max_steps,
    )
    if name != "baseline_no_teacher":
        return made, plan
    own = own_rows(examples, tokenizer, max_length=training.max_length)
    return own, plan_tokens(own.lengths, batch_size=training.batch_size, seed=recipe.seed, tokens=plan.tokens)


def rows_to_learn(
    recipe: Recipe, name: str, said: "Sequence[Said]", tokenizer: "PreTrainedTokenizerBase"
) -> "TokenRows":
    """The responses in the student's tokens, with what its loss needs of the teachers beside them.

    Raises:
        TargetMismatch: the stores' targets are of other tokens than the student's, or kept in different ways.
    """
    from distill.stages._rows import aligned_rows, token_rows

    max_length, needs = recipe.training.max_length, "text" if name != "student" else recipe.loss.kind
    if needs == "aligned":
        assert recipe.teacher.tokenizer_from is not None
        teacher = load_tokenizer(tokenizer_folder(*recipe.teacher.tokenizer_from))
        return aligned_rows(said, teacher, tokenizer, max_length=max_length)
    for one in said if needs != "text" else ():
        one.responses.header.require(
            tokenizer_hash=tokenizer_hash(tokenizer),
            template_hash=template_hash(tokenizer),
            student="the student",
            store=one.responses.path,
        )
        one.responses.header.require_layout(said[0].responses.header, one.responses.path)
    return token_rows(said, tokenizer, max_length=max_length)


def _trained(
    recipe: Recipe,
    name: str,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: "Sequence[TokenRow]",
    plan: "BatchPlan",
    folder: Path,
    scorer: "OpenTeacher | None",
) -> "Trained":
    """Trains `model` in place on the plan, in rounds where the student is to learn from its own answers."""
    from distill.stages._loading import Source
    from distill.stages._on_policy import train_in_rounds
    from distill.stages._trainer import train

    live, teacher = name == "student" and recipe.live, None
    if live:  # of several processes, each reads as much of it as it will hold
        source = Source(partial(live_teacher, recipe), partial(_outline_of_teacher, recipe))
        # rounds would read it again and again
        teacher = live_teacher(recipe) if world().size == 1 or recipe.training.on_policy else source

    def train_up_to(rows: "Sequence[TokenRow]", plan: "BatchPlan", stop_after: int | None = None) -> "Trained":
        return train(
            model,
            rows,
            recipe.loss if name == "student" else Text(kind="text"),
            recipe.training,
            plan,
            seed=recipe.seed,
            pad_id=cast(int, tokenizer.pad_token_id),
            folder=folder / "trainer",
            label=f"train {name}",
            live_teacher=teacher,
            stop_after=stop_after,
            together=world(),
        )

    if name != "student" or not recipe.training.on_policy:
        return train_up_to(rows, plan)
    return train_in_rounds(
        model,
        tokenizer,
        rows,
        recipe.training,
        plan,
        seed=recipe.seed,
        folder=folder,
        open_teacher=None if live else scorer,
        each_scores=recipe.each_scores,
        train=train_up_to,
        together=world(),
    )


def student_tokenizer(recipe: Recipe, examples: Sequence[Example], said: "Sequence[Said]") -> "PreTrainedTokenizerBase":
    """The checkpoint's own; for a student from scratch the teacher's, or one of its own for loss=aligned.

    Its own is trained on prompts and responses.
    """
    if recipe.student.kind == "pretrained":
        return load_tokenizer(local_folder(recipe.student.model, recipe.student.revision))
    if recipe.teacher.tokenizer_from is not None and recipe.loss.kind != "aligned":
        return load_tokenizer(tokenizer_folder(*recipe.teacher.tokenizer_from))
    texts = (one.responses[number].text for one in said for number in range(len(one.responses)))
    return train_tokenizer(
        chain((prompt_text(example.prompt) for example in examples), texts), recipe.student.vocab_size
    )


def _tidy(folder: Path) -> None:
    # what the teacher scored stays: it can be looked at, and is paid for
    for left in (folder / "trainer", folder / "base", *folder.glob("round-*-written")):
        shutil.rmtree(left, ignore_errors=True)


def _build(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", folder: Path, *, outline: bool = False) -> Any:
    """The model to train: float32 weights, or adapters on float32 or nf4 weights. `outline`: without any (no nf4)."""
    import torch

    model = recipe.student.outline(tokenizer) if outline else recipe.student.build(tokenizer, recipe.seed)
    if recipe.adapter.kind == "none":
        return model
    from distill.runtime.bnb import import_bitsandbytes

    import_bitsandbytes()  # peft imports it too, and loudly
    from peft import LoraConfig, get_peft_model

    if recipe.adapter.kind == "qlora":
        from distill.runtime.hf import load_quantised

        # bitsandbytes quantises while it loads, and the student may have lost layers: it goes through the disk
        if world().leads:
            model.save_pretrained(folder / "base")
        model = load_quantised(folder / "base", "nf4")
    adapter = recipe.adapter
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=cast(Any, adapter.alpha),  # peft says int, and only divides it by the rank
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules or "all-linear",
        base_model_name_or_path=getattr(recipe.student, "model", None),
    )
    adapted: Any = get_peft_model(model, config, low_cpu_mem_usage=outline)
    # an adapter that names the head is its update: left alone, PEFT writes the head's frozen weight with every one
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def live_teacher(recipe: Recipe, device: str | None = None) -> "PreTrainedModel":
    """The teacher's model, to be kept beside the student; `device` None is where it runs."""
    from distill.runtime.hf import load_as
    from distill.stages._local_teacher import how_to_load
    from distill.stages._proofs import require_own_logits

    assert recipe.teacher.kind == "hf"
    folder = local_folder(recipe.teacher.model, recipe.teacher.revision)
    teacher = load_as(folder, device=device, **how_to_load(recipe.teacher, folder)).requires_grad_(False)
    require_own_logits(teacher)
    return teacher


def _outline_of_teacher(recipe: Recipe) -> Any:
    """`live_teacher` without storage."""
    from distill.runtime._outline import outline_of

    assert recipe.teacher.kind == "hf"
    return outline_of(local_folder(recipe.teacher.model, recipe.teacher.revision)).requires_grad_(False)


def _save(model: Any, tokenizer: "PreTrainedTokenizerBase", recipe: Recipe, folder: Path) -> None:
    """A complete float32 checkpoint; with an adapter, the merged model, and the adapter alone in `adapter/`."""
    from distill.runtime._adapter_names import name_base
    from distill.runtime.bnb import dequantised_merge, quiet

    shutil.rmtree(folder, ignore_errors=True)
    if recipe.adapter.kind != "none":
        model.save_pretrained(folder / "adapter")
        start = recipe.student
        name_base(folder / "adapter", *((start.model, start.revision) if start.kind == "pretrained" else (None, None)))
        # the base may be nf4: merging into its dequantised weights is exactly the function that was trained
        model = dequantised_merge(model) if recipe.adapter.kind == "qlora" else model.merge_and_unload()
    with quiet():
        model.float().save_pretrained(folder)
    _name_ends(model.generation_config, tokenizer, folder)
    tokenizer.save_pretrained(folder)
    student = recipe.student
    from_where = (student.model, student.revision) if student.kind == "pretrained" else recipe.teacher.tokenizer_from
    if from_where is None or (student.kind == "scratch" and recipe.loss.kind == "aligned"):
        return
    source = tokenizer_folder(*from_where)
    if (source / "tokenizer.model").is_file():
        # transformers 5 no longer writes it, llama.cpp needs its scores
        shutil.copy2(source / "tokenizer.model", folder)


def _name_ends(settings: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes `settings`, the start's generation config, with the end token that the student was trained with."""
    end, ends = cast(int, tokenizer.eos_token_id), settings.eos_token_id
    ends = {end, *(ends if isinstance(ends, list) else [ends] if ends is not None else [])}
    # a chat model has several ends of an answer; it keeps them beside the one that it was trained with
    settings.eos_token_id = sorted(ends) if len(ends) > 1 else end
    settings.pad_token_id = tokenizer.pad_token_id
    # not with save_pretrained: of a config that was changed it refuses what published ones have, such as Vicuna's
    # temperature without do_sample
    settings.to_json_file(folder / "generation_config.json", use_diff=True, keys_to_pop=["compile_config"])
