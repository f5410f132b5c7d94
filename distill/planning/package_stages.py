"""compress and verify: what is made of the student, and proven. One device works at a time, but all of them heal."""

from dataclasses import replace
from typing import Any

from distill.adapter.qlora import Qlora
from distill.hardware import Hardware
from distill.planning import rates
from distill.planning.changes import for_training
from distill.planning.memory import FLOAT32, Memory, of_student, process_bytes
from distill.planning.model import Model
from distill.planning.placement import DISK_RATE, Placement
from distill.planning.result import Stage
from distill.planning.site import Site, size_of
from distill.planning.teaching import of_reader
from distill.planning.train_stage import live_beside, training_work
from distill.recipe import Recipe

VERIFIED_ROWS, VERIFIED_POSITIONS = 64, 1000
LONGEST_READ = 2048


def compress(site: Site) -> list[Stage]:
    recipe, student, hardware = site.recipe, site.facts.student, site.hardware
    if not recipe.compression:
        return []
    one = replace(hardware, count=1)
    live = site.facts.teachers["teach"][1] if recipe.live else None
    heals = any(c.heals for c in recipe.compression.values())

    def need(recipe: Recipe, hardware: Hardware) -> Memory:
        there = replace(site, recipe=recipe, hardware=hardware)
        return max((_making(there, c, live) for c in recipe.compression.values()), key=lambda memory: memory.total)

    seconds, flops, packages = 0.0, 0.0, 0.0
    for compression in recipe.compression.values():
        size = package_bytes(compression, student, recipe)
        packages += size
        seconds += (FLOAT32 * student.parameters + size) / DISK_RATE
        if rows := min(getattr(compression, "calibration_rows", 0), site.volume.rows):
            length = min(site.volume.longest(1 << 20), student.positions or LONGEST_READ)
            read = rates.reading(student, rows * length, length, one, 1, dtype="float32", passes=rows)
            seconds, flops = seconds + read.seconds, flops + read.flops
        if compression.heals:
            _, _, work = training_work(replace(site, recipe=_healing(recipe, compression)), live)
            seconds, flops = seconds + work.seconds, flops + work.flops
    return [
        site.finished(
            "compress",
            f"{size_of(student)}, {', '.join(recipe.compression)}",
            f"healing: DDP over {hardware.count}" if heals and hardware.count > 1 else "one device",
            need,
            for_training(recipe, hardware) if heals else iter(()),
            lambda *_: rates.Work(flops, seconds, "disk"),
            tokens=0.0,
            disk_bytes=packages,
        )
    ]


def package_bytes(compression: Any, student: Model, recipe: Recipe) -> float:
    """Of the weights of a package."""
    rest = 2.0 * (student.parameters - student.linear)
    match compression.kind:
        case "bnb_nf4" | "bnb_nf4_lora":
            nf4 = 0.5 + (1 if getattr(compression, "double_quant", False) else 4) / 64
            adapter = FLOAT32 * student.linear_sizes * getattr(compression, "rank", 0)
            return rest + nf4 * student.linear + adapter
        case "bnb_int8":
            return rest + student.linear
        case "lora":
            adapter = recipe.adapter
            if adapter.kind != "none":
                return FLOAT32 * student.lora_size(adapter.target_modules) * adapter.rank
        case kind if kind.startswith("gguf"):
            return compression.size_bytes(student.config) or 2.0 * student.parameters
    return 2.0 * student.parameters


def _making(site: Site, compression: Any, live: Model | None) -> Memory:
    recipe, student, hardware = site.recipe, site.facts.student, site.hardware
    process = process_bytes(hardware)
    if compression.heals:
        healing = _healing(recipe, compression)
        beside = live_beside(healing, live, site.volume, hardware, student) if live else None
        memory = of_student(healing, student, site.volume, hardware, kind=recipe.target_kind, live=beside)
        return replace(memory, moment=f"healing {compression.kind}")
    if compression.kind == "bf16" and not hardware.is_cpu:
        return Memory(process=process, moment="bf16 is made on the CPU")
    whole = FLOAT32 * student.parameters if compression.kind.startswith("gguf") else 0.0
    weights = max(whole, package_bytes(compression, student, recipe))
    return Memory(weights=weights, process=process, moment=f"making {compression.kind}")


def _healing(recipe: Recipe, compression: Any) -> Recipe:
    """The training that heals, as a recipe: each device holds the four-bit student."""
    training = replace(recipe.training, max_steps=compression.max_steps, dropout=0.0, sharding="none", on_policy=0.0)
    return replace(
        recipe,
        adapter=Qlora(kind="qlora", rank=compression.rank),
        training=training,
        student=_pretrained(recipe),
        compression={},
    )


def _pretrained(recipe: Recipe) -> Any:
    """A student from scratch has become a checkpoint by then."""
    from distill.student.pretrained import Pretrained

    return recipe.student if recipe.student.kind == "pretrained" else Pretrained(kind="pretrained", model="student")


def verify(site: Site) -> list[Stage]:
    recipe, student, hardware = site.recipe, site.facts.student, site.hardware
    packages = [c for c in recipe.compression.values() if c.runtime == "transformers"]
    if not recipe.compression:
        return []
    length = min(_longest_compared(site), student.positions or LONGEST_READ)

    def need(_: Recipe, hardware: Hardware) -> Memory:
        memory = of_reader(
            student,
            Placement(FLOAT32 * student.parameters, 0.0, 1),
            "float32",
            hardware,
            length=length,
            positions=VERIFIED_POSITIONS,
            rows=8,
            new_tokens=48,
        )
        return replace(memory, moment="the student in float32")

    models = 1 + len(packages)
    read = rates.reading(student, models * VERIFIED_ROWS * length, length, hardware, 1, dtype="float32")
    seconds = read.seconds + (FLOAT32 * student.parameters * models) / DISK_RATE
    return [
        site.finished(
            "verify",
            f"{size_of(student)} and {len(recipe.compression)} packages, one after another",
            "one device",
            need,
            iter(()),
            lambda *_: rates.Work(read.flops, seconds, "disk"),
            tokens=float(models * VERIFIED_ROWS * length),
        )
    ]


def _longest_compared(site: Site) -> int:
    """Tokens of the longest row: of one, no more is read than is compared."""
    most = site.volume.longest_prompt + VERIFIED_POSITIONS
    # held-out texts are whole, however those that are learnt are cut
    return most if site.recipe.is_plain_text else min(site.volume.longest(1 << 20), most)
