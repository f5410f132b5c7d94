"""plan(): a recipe and its hardware → a Plan. Reads configurations and local data; downloads no weights."""

from dataclasses import replace

from distill._process_checks import check_division
from distill.devices import CPU_BANDWIDTH, CPU_FLOPS
from distill.errors import RecipeError
from distill.hardware import Hardware, hardware_of, typed
from distill.planning import rates
from distill.planning.facts import Facts, bytes_to_convert, bytes_to_download, facts_of, key_of
from distill.planning.memory import ADAM, FLOAT32, processes, trained
from distill.planning.package_stages import package_bytes
from distill.planning.result import Download, Plan
from distill.planning.site import Site
from distill.planning.stages import stages_of
from distill.planning.store_size import store_bytes
from distill.planning.weights import dtype_of
from distill.recipe import Recipe


def plan(recipe: Recipe, hardware: str | None = None, price_per_gpu_hour: float | None = None) -> Plan:
    """What `recipe` needs on `hardware`: None takes the recipe's own, else this machine.

    Args:
        hardware: such as "8xh100-80gb"; see `distill.hardware`.
        price_per_gpu_hour: of one device for an hour, in any currency.

    Raises:
        RecipeError: a checkpoint, an architecture or the hardware is not known.
        DataError: the data's file cannot be read.
    """
    if price_per_gpu_hour is not None and not 0 <= price_per_gpu_hour < 1e6:
        raise RecipeError(f"price_per_gpu_hour={price_per_gpu_hour}: needs the price of one device for an hour.")
    on = hardware_of(hardware or recipe.hardware)
    facts = facts_of(recipe)
    stages = stages_of(Site(recipe, facts, on))
    models = [*(model for _, model in facts.teachers.values() if model), facts.student]
    downloads = {model.name: Download(model.name, bytes_to_download(model), model.stored) for model in models}
    fetched = tuple(download for download in downloads.values() if download.bytes)
    converted = {model.name: size for model in models if (size := bytes_to_convert(model))}
    first = next((model for _, model in facts.teachers.values() if model), None)
    stored = _stored(recipe, facts)
    return Plan(
        recipe=recipe.name,
        hardware=str(on),
        devices=on.count,
        nodes=on.nodes,
        device_bytes=on.device.memory_bytes,
        teacher_parameters=first.parameters if first else None,
        student_parameters=facts.student.parameters,
        rows=facts.volume.rows,
        stages=tuple(stages),
        downloads=fetched,
        store_bytes=stored,
        disk_bytes=sum(d.bytes for d in fetched) + sum(converted.values()) + stored + _on_disk(recipe, facts, on),
        price_per_gpu_hour=price_per_gpu_hour,
        assumptions=(
            *facts.notes,
            *facts.volume.notes,
            *_converted(converted),
            *_slow_dtypes(facts, on),
            *_assumed(recipe, on),
        ),
        licence=_licence(recipe),
        refused=_refused(recipe, on),
    )


def _refused(recipe: Recipe, hardware: Hardware) -> str | None:
    """What `distill._process_checks` would say to one process for each device; None where nothing is trained."""
    if "train" not in recipe.stages:
        return None
    try:
        check_division(recipe, processes(hardware))
    except RecipeError as error:
        return str(error).replace("\n", " ")
    return None


def _converted(sizes: dict[str, float]) -> list[str]:
    if not sizes:
        return []
    said = ", ".join(f"{name} ({size / 1e9:,.3g} GB)" for name, size in sizes.items())
    return [f"disk: the hub has {said} as .bin alone; written as much again as safetensors, and both stay."]


def _slow_dtypes(facts: Facts, hardware: Hardware) -> list[str]:
    """Teachers of transformers whose weights are in bfloat16, on a device that cannot multiply it."""
    if hardware.device.has_bf16 or hardware.is_cpu:
        return []
    device, lines = hardware.device, []
    for stage, (one, model) in facts.teachers.items():
        if not model or one.kind != "hf" or dtype_of(one, model) != "bfloat16":
            continue
        said = f"{stage}: {device.name} does not multiply bfloat16 in hardware; it is planned at float32's rate."
        if dtype_of(replace(one, dtype="auto"), model) == "float16":
            times = device.bf16_flops / device.float32_flops
            said += f" {key_of(stage)}.dtype=auto takes float16, as stored: {times:.0f} times as fast."
        lines.append(said)
    return lines


def _stored(recipe: Recipe, facts: Facts) -> float:
    vocab = next((model.vocab for _, model in facts.teachers.values() if model), facts.student.vocab)
    return store_bytes(recipe, facts.volume, vocab, facts.student.hidden)


def _on_disk(recipe: Recipe, facts: Facts, hardware: Hardware) -> float:
    """Students, two checkpoints of the training that runs, and packages."""
    student = facts.student
    students = (1 + len(recipe.baselines)) * FLOAT32 * student.parameters
    updated = trained(recipe, student, hardware).parameters
    checkpoints = 2 * (FLOAT32 + ADAM) * updated
    return students + checkpoints + sum(package_bytes(c, student, recipe) for c in recipe.compression.values())


def _assumed(recipe: Recipe, hardware: Hardware) -> list[str]:
    """What the figures rest on, one line each."""
    if hardware.is_cpu:
        lines = [
            f"speed: {CPU_FLOPS / 1e12:g} TFLOP/s for each of {hardware.device.bf16_flops / CPU_FLOPS:.0f} cores (this "
            f"machine's) and {CPU_BANDWIDTH / 1e9:g} GB/s of memory are assumed for a CPU; times are rough.",
            "memory: what torch holds, with MALLOC_MMAP_THRESHOLD_=1048576 set; else glibc keeps 10 to 70 % more.",
        ]
    else:
        lines = [
            f"speed: {rates.TRAINING_SHARE:.0%} of the bf16 peak in training, {rates.READING_SHARE:.0%} in reading, "
            f"{rates.BANDWIDTH_SHARE:.0%} of the memory's bandwidth in writing.",
            "memory: 1.5 GB of each GPU for CUDA, NCCL and what the allocator cannot use; "
            f"{hardware.host_bytes / 1e9:,.0f} GB of a node's own memory "
            f"({typed(f'{hardware.count}x{hardware.device.name}:host_gb=…')} says another for each GPU).",
        ]
    if hardware.nodes > 1:
        lines.append(
            f"links: {hardware.link_bandwidth / 1e9:g} GB/s for each device between {hardware.nodes} nodes, as such "
            "nodes usually have (net_gb= in a description says another)."
        )
    if hardware.count > 1 and not hardware.is_cpu:
        lines.append(
            f"training: one process for each GPU (torchrun --nproc-per-node {hardware.per_node}"
            + (f" --nnodes {hardware.nodes}" if hardware.nodes > 1 else "")
            + " -m distill …)."
        )
    if recipe.training.on_policy:
        lines.append("training.on_policy: the student's own answers are taken to be as long as the teacher's.")
    return lines


def _licence(recipe: Recipe) -> tuple[str, ...]:
    from distill._licences import verdict

    return tuple(f"{finding.level}: {finding}" for finding in verdict(recipe).findings if finding.level != "ok")
