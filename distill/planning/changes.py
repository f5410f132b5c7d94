"""What to alter, in the order of what it costs, until a stage fits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from distill.adapter.lora import Lora
from distill.adapter.qlora import Qlora
from distill.family.known import published
from distill.hardware import Hardware, typed
from distill.planning.model import Model
from distill.planning.teaching import copies_of
from distill.recipe import Recipe
from distill.teacher.vllm import Vllm

MOST_DEVICES = 512
SHORTEST = 64


@dataclass(frozen=True)
class Change:
    """Overrides as they are typed, and what they make of the recipe and the hardware."""

    words: tuple[str, ...]
    recipe: Recipe
    hardware: Hardware
    offloads: bool = False
    """Leaves weights in the machine's memory, which takes nothing but time: a great deal of it."""

    def and_then(self, words: str, recipe: Recipe, hardware: Hardware | None = None) -> "Change":
        return replace(self, words=(*self.words, words), recipe=recipe, hardware=hardware or self.hardware)


def for_training(recipe: Recipe, hardware: Hardware) -> Iterator[Change]:
    """Smaller micro-batches, checkpointing, other layouts, shorter rows, adapters; each also with the cheaper ones."""
    start = Change((), recipe, hardware)
    smaller = list(_accumulations(start))
    yield from smaller
    least = smaller[-1] if smaller else start
    cheap = [start, least] if smaller else [start]
    if not recipe.training.gradient_checkpointing:
        cheap = [_training(c, "training.gradient_checkpointing=true", gradient_checkpointing=True) for c in cheap]
        yield from cheap
    can_be_cut = recipe.adapter.kind != "qlora" and not recipe.training.on_policy
    if hardware.count > 1 and can_be_cut and recipe.training.sharding != "full":
        yield from (_training(c, "training.sharding=full", sharding="full") for c in cheap)
    yield from shorter(cheap[-1])
    if recipe.adapter.kind == "none" and recipe.student.kind == "pretrained" and recipe.student.layers is None:
        yield cheap[-1].and_then("adapter=lora", replace(cheap[-1].recipe, adapter=Lora(kind="lora")))
    if recipe.adapter.kind != "qlora" and recipe.student.kind == "pretrained" and "lora" not in recipe.compression:
        yield cheap[-1].and_then("adapter=qlora", replace(cheap[-1].recipe, adapter=Qlora(kind="qlora")))
    # what has to be bought comes last
    if recipe.adapter.kind != "qlora":
        yield from _more_devices(cheap[-1])


def for_teaching(recipe: Recipe, hardware: Hardware, model: Model) -> Iterator[Change]:
    """Smaller batches, all GPUs of a node, four bits, the machine's memory, a tensor-parallel server, more GPUs."""
    teacher, start = recipe.teacher, Change((), recipe, hardware)
    if teacher.kind == "vllm":
        start = _without_bf16(start)
        if start.words:
            yield start
        yield from _less_parallel(start)
        yield from _more_parallel(start, model)
        return
    if teacher.kind != "hf":
        return
    size, smaller = teacher.batch_size, []
    while size > max(1, teacher.samples):
        size = max(size // 2, 1)
        smaller.append(_teacher(start, f"teacher.batch_size={size}", batch_size=size))
    yield from smaller
    cheap = [start, smaller[-1]] if smaller else [start]
    spread = cheap
    if not hardware.is_cpu and teacher.device_map is None:
        spread = [_teacher(c, "teacher.device_map=auto", device_map="auto") for c in cheap]
        yield from spread if hardware.per_node > 1 else ()
    if teacher.quantization == "none":
        yield from (_teacher(c, "teacher.quantization=nf4", quantization="nf4") for c in cheap)
        if spread is not cheap and hardware.per_node > 1:
            yield from (_teacher(c, "teacher.quantization=nf4", quantization="nf4") for c in spread)
    if not hardware.is_cpu:
        unquantised = [start, *smaller] if teacher.quantization == "none" else []
        yield from (_offloaded(c) for c in unquantised)
        if recipe.target_kind in {None, "top_k"} and teacher.quantization == "none":
            yield from _more_parallel(_served(recipe, hardware), model)
        yield from _more_of_a_node(spread[-1] if spread is not cheap else cheap[-1])


def as_served(recipe: Recipe, hardware: Hardware, model: Model) -> Iterator[Change]:
    """A teacher of transformers as vLLM's, over the devices that are there. Its targets are top_k then."""
    teacher = recipe.teacher
    if teacher.kind != "hf" or hardware.is_cpu or teacher.live or teacher.quantization != "none":
        return
    known = published(model.name)
    if known is None or not known[0].vllm or teacher.targets not in {"auto", "top_k"}:
        return
    start = _served(recipe, hardware)
    yield start
    yield from (change for change in _more_parallel(start, model) if change.hardware == hardware)


def _accumulations(start: Change) -> Iterator[Change]:
    training, share = start.recipe.training, start.hardware.count
    for steps in range(training.gradient_accumulation_steps + 1, training.batch_size + 1):
        if training.batch_size % steps == 0 and (training.batch_size // steps) % share == 0:
            yield _training(start, f"training.gradient_accumulation_steps={steps}", gradient_accumulation_steps=steps)


def _more_devices(start: Change) -> Iterator[Change]:
    count = start.hardware.count
    while not start.hardware.is_cpu and count < MOST_DEVICES:
        count *= 2
        hardware = replace(start.hardware, count=count)
        recipe = start.recipe
        micro = recipe.training.batch_size // recipe.training.gradient_accumulation_steps
        words = typed(str(hardware))
        if micro % count:
            steps = recipe.training.batch_size // count
            if not steps or recipe.training.batch_size % steps:
                return
            recipe = replace(recipe, training=replace(recipe.training, gradient_accumulation_steps=steps))
            start = Change(tuple(w for w in start.words if "accumulation" not in w), start.recipe, start.hardware)
            words += f" training.gradient_accumulation_steps={steps}"
        yield start.and_then(words, recipe, hardware)


def _more_of_a_node(start: Change) -> Iterator[Change]:
    """As many GPUs as a node has, or its nodes together can hold; one process reaches one node only."""
    count = start.hardware.count
    while count < start.hardware.device.per_node:
        count *= 2
        hardware = replace(start.hardware, count=count)
        yield _teacher(start, f"teacher.device_map=auto {typed(str(hardware))}", hardware, device_map="auto")


def _less_parallel(start: Change) -> Iterator[Change]:
    """Where a copy asks for more devices than there are: as many as there are, then as many as it asks for."""
    teacher: Any = start.recipe.teacher
    count, tensor = start.hardware.count, teacher.tensor_parallel_size
    copies = copies_of(teacher)
    needed = tensor * teacher.pipeline_parallel_size * copies
    if needed <= count:
        return
    if copies == 1:
        size = max(size for size in range(1, count + 1) if tensor % size == 0)
        words = f"teacher.tensor_parallel_size={size}"
        words += " teacher.pipeline_parallel_size=1" if teacher.pipeline_parallel_size > 1 else ""
        yield _teacher(start, words, tensor_parallel_size=size, pipeline_parallel_size=1)
    hardware = replace(start.hardware, count=needed)
    yield start.and_then(typed(str(hardware)), start.recipe, hardware)


def _more_parallel(start: Change, model: Model) -> Iterator[Change]:
    teacher: Any = start.recipe.teacher
    size, count = teacher.tensor_parallel_size, start.hardware.count
    while size < MOST_DEVICES and model.heads % (2 * size) == 0 and 2 * size <= start.hardware.device.per_node:
        size *= 2
        hardware = replace(start.hardware, count=max(count, size * teacher.pipeline_parallel_size))
        more = f" {typed(str(hardware))}" if hardware.count > count else ""
        yield _teacher(start, f"teacher.tensor_parallel_size={size}{more}", hardware, tensor_parallel_size=size)
    stages = teacher.pipeline_parallel_size
    while stages < 16:
        stages *= 2
        hardware = replace(start.hardware, count=max(count, size * stages))
        more = f" {typed(str(hardware))}" if hardware.count > count else ""
        words = f"teacher.tensor_parallel_size={size} teacher.pipeline_parallel_size={stages}{more}"
        yield _teacher(start, words, hardware, tensor_parallel_size=size, pipeline_parallel_size=stages)


def shorter(start: Change) -> Iterator[Change]:
    """Rows of half as many tokens, and half as many again."""
    length = start.recipe.training.max_length
    least = max(SHORTEST, length // 4)  # what is left of a row that is cut further teaches something else
    while length > least:
        length = max(least, length // 2)
        yield _training(start, f"training.max_length={length}", max_length=length)


def _offloaded(start: Change) -> Change:
    teacher: Any = start.recipe.teacher
    if teacher.device_map != "auto":
        start = _teacher(start, "teacher.device_map=auto", device_map="auto")
    return replace(start, offloads=True)


def _served(recipe: Recipe, hardware: Hardware) -> Change:
    """With teacher=vllm typed: keys of the recipe that it has too stay as they are."""
    same = ("responses", "keep_answers", "samples", "filters", "temperature", "max_new_tokens", "revision", "dtype")
    kept = {name: getattr(recipe.teacher, name) for name in same}
    teacher = Vllm(kind="vllm", model=getattr(recipe.teacher, "model", ""), **kept)
    return _without_bf16(Change(("teacher=vllm",), replace(recipe, teacher=teacher), hardware))


def _without_bf16(start: Change) -> Change:
    """In float16 where vLLM would refuse the bfloat16 that the recipe names."""
    teacher: Any = start.recipe.teacher
    if teacher.dtype != "bfloat16" or start.hardware.device.has_bf16:
        return start
    return _teacher(start, "teacher.dtype=float16", dtype="float16")


def _training(start: Change, words: str, **values: Any) -> Change:
    return start.and_then(words, replace(start.recipe, training=replace(start.recipe.training, **values)))


def _teacher(start: Change, words: str, hardware: Hardware | None = None, **values: Any) -> Change:
    return start.and_then(words, replace(start.recipe, teacher=replace(start.recipe.teacher, **values)), hardware)
