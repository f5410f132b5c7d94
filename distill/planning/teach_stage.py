"""The teach stage: what asking each teacher takes."""

from dataclasses import replace
from typing import Any

from distill.planning import rates
from distill.planning.changes import for_teaching
from distill.planning.hardware import Hardware
from distill.planning.memory import Memory
from distill.planning.model import BYTES, Model
from distill.planning.placement import placed
from distill.planning.result import Stage
from distill.planning.site import Site, asked_rows, size_of
from distill.planning.store_size import store_bytes
from distill.planning.teaching import of_local, of_served, rows_in_flight
from distill.planning.volume import Volume
from distill.planning.weights import local_bytes
from distill.recipe import Recipe


def teach(site: Site) -> list[Stage]:
    """One stage for each teacher whose weights are ours to load."""
    stages = []
    for name, (teacher, model) in site.facts.teachers.items():
        if model is None or (site.recipe.live and teacher.responses == "data"):
            continue  # it runs elsewhere, or is asked nothing before training
        alone = replace(site.recipe, teacher=teacher) if site.recipe.teacher.kind == "routed" else site.recipe
        kind = site.recipe.target_kind
        if teacher.responses == "data" and kind is None:
            continue
        own = replace(site, recipe=alone)
        disk = store_bytes(site.recipe, site.volume, model.vocab, site.facts.student.hidden)
        disk /= len(site.facts.teachers)
        stages.append(
            own.finished(
                name,
                f"{size_of(model)} {'writes' if teacher.responses == 'generate' else 'reads'}"
                + (f", {kind} targets" if kind else ""),
                _teachers_layout(teacher, model, site.hardware),
                lambda recipe, hardware, model=model: teaching_need(recipe, hardware, model, site.volume),
                for_teaching(alone, site.hardware, model),
                lambda recipe, hardware, model=model: teaching_work(
                    replace(site, recipe=recipe, hardware=hardware), recipe.teacher, model
                ),
                tokens=asked_rows(site) * (site.volume.prompt + site.volume.answer),
                disk_bytes=disk,
            )
        )
    return stages


def teaching_need(recipe: Recipe, hardware: Hardware, model: Model, volume: Volume) -> Memory:
    """Of the recipe's one teacher."""
    teacher: Any = recipe.teacher
    context = min(model.positions or 1 << 30, getattr(teacher, "max_model_len", None) or 1 << 30)
    prompt = min(volume.longest_prompt, context)
    length = min(volume.whole, context)
    if teacher.kind == "vllm":
        return of_served(teacher, model, hardware, length=length)
    targets = recipe.target_kind is not None and not recipe.live
    generates = teacher.responses == "generate" and not (teacher.keep_answers and volume.labelled == 1)
    return of_local(teacher, model, hardware, prompt=prompt, length=length, generates=generates, targets=targets)


def teaching_work(site: Site, teacher: Any, model: Model) -> rates.Work:
    """Writing answers where it writes them, then reading whole rows where their targets are kept."""
    volume, hardware = site.volume, site.hardware
    rows, length = asked_rows(site), volume.prompt + volume.answer
    served = teacher.kind == "vllm"
    devices = min(hardware.count, teacher.tensor_parallel_size * teacher.pipeline_parallel_size) if served else 1
    replicas = replicas_of(teacher, hardware)
    fetching = 0.0 if served else placed(teacher, model, hardware).seconds_per_pass
    work = rates.NOTHING
    if teacher.responses == "generate":
        asked = rows * (1 - volume.labelled) if teacher.keep_answers else rows
        dtype = BYTES[model.stored if teacher.dtype == "auto" else teacher.dtype]
        flight = rows_in_flight(teacher, model, hardware, round(length) + 1) if served else teacher.batch_size
        at_once = min(teacher.concurrency / replicas, flight) if served else teacher.batch_size
        work = rates.writing(
            model,
            asked / replicas,
            volume.prompt,
            volume.answer,
            hardware,
            at_once=at_once,
            devices=devices,
            weight_bytes=model.parameters * dtype if served else local_bytes(teacher, model),
            engine="vllm" if served else "transformers",
            fetching=fetching,
        )
        work = replace(work, flops=work.flops * replicas)
    if site.recipe.target_kind is not None and not site.recipe.live:
        fetched = rows / teacher.batch_size * fetching if fetching else 0.0
        read = rates.reading(model, rows * length, length, hardware, devices * replicas)
        bound = work.bound or ("fetching weights" if fetched > read.seconds else read.bound)
        work = rates.Work(work.flops + read.flops, work.seconds + read.seconds + fetched, bound)
    idle = hardware.count - devices * replicas
    return replace(work, bound=work.bound + (f"; {idle} of {hardware.count} devices wait" if idle > 0 else ""))


def replicas_of(teacher: Any, hardware: Hardware) -> int:
    """Copies of a served teacher that answer beside each other: vLLM's --data-parallel-size."""
    if teacher.kind != "vllm":
        return 1
    words = [word.replace("=", " ").split() for word in teacher.extra_arguments]
    flat = [part for word in words for part in word]
    found = [
        flat[i + 1] for i, word in enumerate(flat[:-1]) if word.lstrip("-").replace("_", "-") == "data-parallel-size"
    ]
    room = hardware.count // (teacher.tensor_parallel_size * teacher.pipeline_parallel_size)
    return max(1, min(room, int(found[0]) if found and found[0].isdigit() else 1))


def _teachers_layout(teacher: Any, model: Model, hardware: Hardware) -> str:
    if teacher.kind == "vllm":
        replicas = replicas_of(teacher, hardware)
        pipeline = f" x pipeline {teacher.pipeline_parallel_size}" if teacher.pipeline_parallel_size > 1 else ""
        return f"tensor-parallel {teacher.tensor_parallel_size}{pipeline}" + (
            f" x {replicas} copies" if replicas > 1 else ""
        )
    return str(placed(teacher, model, hardware))
