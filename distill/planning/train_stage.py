"""The train stage: the student, and the baselines that are trained like it."""

from dataclasses import replace
from typing import Any

from distill.hardware import Hardware
from distill.planning import rates
from distill.planning.changes import for_training
from distill.planning.memory import FLOAT32, Memory, computes_bf16, micro_rows, of_student, trained
from distill.planning.model import BYTES, Model
from distill.planning.own_answers import own_answers_work
from distill.planning.result import Stage
from distill.planning.site import Site, asked_rows, size_of
from distill.planning.teaching import of_local
from distill.planning.volume import Volume
from distill.planning.weights import dtype_of
from distill.recipe import Recipe


def train(site: Site) -> list[Stage]:
    """In the order in which they are trained: baselines, then the student."""
    recipe, student = site.recipe, site.facts.student
    stages = []
    for name in (*recipe.baselines, "student"):
        kind = recipe.target_kind if name == "student" else None
        live = recipe.live and name == "student"
        teacher = site.facts.teachers["teach"] if live else None

        def need(recipe: Recipe, hardware: Hardware, kind: Any = kind, teacher: Any = teacher) -> Memory:
            beside = live_beside(recipe, teacher[1], site.volume, hardware, student) if teacher else None
            return of_student(recipe, student, site.volume, hardware, kind=kind, live=beside)

        own = name == "student" and recipe.training.on_policy > 0

        def work_of(recipe: Recipe, hardware: Hardware, teacher: Any = teacher, own: bool = own) -> rates.Work:
            there = replace(site, recipe=recipe, hardware=hardware)
            steps, _, work = training_work(there, teacher[1] if teacher else None)
            if not own:
                return work
            answers = own_answers_work(there, None if teacher else site.facts.teachers["teach"][1], steps)
            slowest = max(work, answers, key=lambda part: part.seconds)
            bound = slowest.bound if slowest is work else f"{answers.bound}, in the student's own answers"
            return rates.Work(work.flops + answers.flops, work.seconds + answers.seconds, bound)

        steps, tokens, _ = training_work(site, teacher[1] if teacher else None)
        saved = FLOAT32 * student.parameters
        # two checkpoints with AdamW's averages while it trains, and the student itself
        stages.append(
            site.finished(
                f"train {name}" if recipe.baselines else "train",
                f"{size_of(student)}, {_what_is_trained(recipe)}, {steps:,.0f} steps",
                _students_layout(recipe, student, site.hardware),
                need,
                for_training(recipe, site.hardware),
                work_of,
                tokens=tokens,
                disk_bytes=saved,
            )
        )
    return stages


def training_work(site: Site, live: Model | None) -> tuple[float, float, rates.Work]:
    """(steps, tokens, work) of one student."""
    recipe, student, hardware, volume = site.recipe, site.facts.student, site.hardware, site.volume
    training = recipe.training
    length = volume.length(training.max_length)
    rows = asked_rows(site)
    steps = training.max_steps or max(1, round(training.num_train_epochs * rows / training.batch_size))
    tokens = steps * training.batch_size * length
    of, bf16 = trained(recipe, student, hardware), computes_bf16(recipe, hardware)
    busy = min(hardware.count, max(1, training.batch_size // training.gradient_accumulation_steps))
    work = rates.training(
        student,
        tokens,
        length,
        steps,
        hardware,
        micro_batches=training.gradient_accumulation_steps,
        busy=busy,
        shards=of.shards,
        trained=of.parameters,
        recomputes=training.gradient_checkpointing,
        frozen=recipe.adapter.kind != "none",
        bf16=bf16,
    )
    if live is not None:
        passes = steps * training.gradient_accumulation_steps
        dtype = dtype_of(recipe.teacher, live) if recipe.teacher.kind == "hf" else "bfloat16"
        read = rates.reading(live, tokens, length, hardware, busy, dtype=dtype, passes=passes)
        work = rates.Work(work.flops + read.flops, work.seconds + read.seconds, work.bound)
    return steps, tokens, work


def live_beside(recipe: Recipe, teacher: Model, volume: Volume, hardware: Hardware, student: Model) -> Memory:
    """A teacher beside the student, cut over the same devices where the student is."""
    rows = micro_rows(recipe, hardware)
    assert recipe.teacher.kind == "hf"
    own = replace(recipe.teacher, batch_size=rows, device_map=None)
    length = volume.longest(recipe.training.max_length)
    whole = of_local(own, teacher, hardware, prompt=length, length=length, generates=False, targets=True)
    shards = trained(recipe, student, hardware).shards
    gathered = BYTES["bfloat16"] * (teacher.embedding + teacher.head + 2 * teacher.largest_block) if shards > 1 else 0
    return replace(whole, weights=whole.weights / shards + gathered, logits=0.0, process=0.0)


def _what_is_trained(recipe: Recipe) -> str:
    return {"none": "all weights", "lora": "LoRA", "qlora": "QLoRA on nf4"}[recipe.adapter.kind]


def _students_layout(recipe: Recipe, student: Model, hardware: Hardware) -> str:
    if hardware.count == 1:
        return f"one device, {micro_rows(recipe, hardware)} rows at a time"
    kind = "FSDP2" if trained(recipe, student, hardware).shards > 1 else "DDP"
    return f"{kind} over {hardware.count}, {micro_rows(recipe, hardware)} rows each"
