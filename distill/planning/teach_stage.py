"""The teach stage: what asking each teacher takes."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from distill.hardware import Hardware
from distill.planning import rates
from distill.planning.changes import Change, as_served, for_teaching
from distill.planning.evaluating import evaluating_beside
from distill.planning.facts import key_of
from distill.planning.model import Model
from distill.planning.placement import placed
from distill.planning.result import Remedy, Stage
from distill.planning.site import Site, asked_rows, fits, size_of
from distill.planning.store_size import store_bytes
from distill.planning.teaching import copies_of, devices_of, rows_in_flight, served_bytes, served_dtype, teaching_need
from distill.planning.volume import volume_of
from distill.planning.weights import dtype_of, local_bytes


def teach(site: Site) -> list[Stage]:
    """One stage for each teacher whose weights are ours to load."""
    stages = []
    for name, (teacher, model) in site.facts.teachers.items():
        if model is None or (site.recipe.live and teacher.responses == "data"):
            continue  # it runs elsewhere, or is asked nothing before training
        kind = site.recipe.target_kind
        if teacher.responses == "data" and kind is None:
            continue
        is_routed = site.recipe.teacher.kind == "routed"
        own = _alone(site, teacher) if is_routed else site
        tries = for_teaching(own.recipe, site.hardware, model)
        disk = store_bytes(site.recipe, site.volume, model.vocab, site.facts.student.hidden)
        disk /= len(site.facts.teachers)
        stages.append(
            own.finished(
                name,
                f"{size_of(model)} {'writes' if teacher.responses == 'generate' else 'reads'}"
                + (f", {kind} targets" if kind else ""),
                _teachers_layout(teacher, model, site.hardware),
                lambda recipe, hardware, own=own, model=model: teaching_need(recipe, hardware, model, own.volume),
                _of_route(tries, name) if is_routed else tries,
                lambda recipe, hardware, own=own, model=model: teaching_work(
                    replace(own, recipe=recipe, hardware=hardware), recipe.teacher, model
                ),
                beside=None if name != "teach" else evaluating_beside(site),
                tokens=asked_rows(own) * (own.volume.prompt + own.volume.answer),
                disk_bytes=disk,
            )
        )
        if not is_routed:
            stages[-1] = replace(stages[-1], faster=_faster(own, model, stages[-1]))
    return stages


def _alone(site: Site, teacher: Any) -> Site:
    """As if this one of several teachers were the recipe's own, with an even share of the rows."""
    kind, data = site.recipe.target_kind, replace(site.recipe.data, teacher_field=None)
    same = replace(teacher, targets=kind) if kind in {"sampled", "top_k", "dense"} else teacher
    recipe = replace(site.recipe, teacher=same, data=data)
    volume = volume_of(recipe)
    volume = replace(volume, rows=round(volume.rows / len(site.facts.teachers)))
    return replace(site, recipe=recipe, facts=replace(site.facts, volume=volume))


def _of_route(tries: Iterator[Change], stage: str) -> Iterator[Change]:
    """Under the keys of this one of several teachers. Another kind of teacher would need a table of other keys."""
    for change in tries:
        if "teacher=vllm" not in change.words:
            words = (re.sub(r"\bteacher\.", f"{key_of(stage)}.", word) for word in change.words)
            yield replace(change, words=tuple(words))


def _faster(site: Site, model: Model, stage: Stage) -> Remedy | None:
    """vLLM over all devices, where transformers leaves some waiting; None where that takes as long or does not fit."""
    if site.hardware.count == 1:
        return None
    found: list[Remedy] = []
    for change in as_served(site.recipe, site.hardware, model):
        memory = teaching_need(change.recipe, change.hardware, model, site.volume)
        if not fits(memory, site.hardware):
            continue
        seconds = teaching_work(replace(site, recipe=change.recipe), change.recipe.teacher, model).seconds
        before, after = site.recipe.target_kind, change.recipe.target_kind
        note = f"{after} targets instead of {before}" if after != before else ""
        found.append(Remedy(" ".join(change.words), memory.total, memory.host, seconds, False, note))
    best = min(found, key=lambda remedy: remedy.seconds, default=None)
    return best if best and best.seconds < stage.seconds else None


def teaching_work(site: Site, teacher: Any, model: Model) -> rates.Work:
    """Writing answers where it writes them, then reading whole rows where their targets are kept."""
    volume, hardware = site.volume, site.hardware
    rows, length = asked_rows(site), volume.prompt + volume.answer
    served = teacher.kind == "vllm"
    devices = devices_of(teacher, hardware) if served else 1
    replicas = replicas_of(teacher, hardware)
    fetching = 0.0 if served else placed(teacher, model, hardware).seconds_per_pass
    dtype = served_dtype(teacher, model, hardware) if served else dtype_of(teacher, model)
    work = rates.NOTHING
    if teacher.responses == "generate":
        asked = rows * (1 - volume.labelled) if teacher.keep_answers else rows
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
            weight_bytes=served_bytes(teacher, model) if served else local_bytes(teacher, model),
            engine="vllm" if served else "transformers",
            dtype=dtype,
            longest=None if served else rates.longest_of(at_once, volume.answer, volume.longest_answer),
            fetching=fetching,
        )
        work = replace(work, flops=work.flops * replicas)
    if site.recipe.target_kind is not None and not site.recipe.live:
        batches = 0.0 if served else rows / teacher.batch_size
        fetched = batches * fetching
        read = rates.reading(model, rows * length, length, hardware, devices * replicas, dtype=dtype, passes=batches)
        bound = work.bound or ("fetching weights" if fetched > read.seconds else read.bound)
        work = rates.Work(work.flops + read.flops, work.seconds + read.seconds + fetched, bound)
    idle = hardware.count - devices * replicas
    return replace(work, bound=work.bound + (f"; {idle} of {hardware.count} devices wait" if idle > 0 else ""))


def replicas_of(teacher: Any, hardware: Hardware) -> int:
    """Copies of a served teacher that answer beside each other and have devices."""
    if teacher.kind != "vllm":
        return 1
    room = hardware.count // (teacher.tensor_parallel_size * teacher.pipeline_parallel_size)
    return max(1, min(room, copies_of(teacher)))


def _teachers_layout(teacher: Any, model: Model, hardware: Hardware) -> str:
    if teacher.kind == "vllm":
        replicas = replicas_of(teacher, hardware)
        pipeline = f" x pipeline {teacher.pipeline_parallel_size}" if teacher.pipeline_parallel_size > 1 else ""
        return f"tensor-parallel {teacher.tensor_parallel_size}{pipeline}" + (
            f" x {replicas} copies" if replicas > 1 else ""
        )
    return str(placed(teacher, model, hardware))
