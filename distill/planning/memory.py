"""Memory: bytes on one device at the moment when most is needed, by what they are for.

What is counted is what the stages really hold (see `distill.stages`): float32 weights and AdamW's averages, float32
gradients, autocast's 16-bit copies, activations by `activations`, and the fused loss's chunk of logits.
"""

from dataclasses import dataclass, fields
from typing import Any

from distill.hardware import Hardware
from distill.planning.activations import Activations, Pass, of_training
from distill.planning.model import Model
from distill.planning.volume import Volume
from distill.recipe import Recipe

CPU_PROCESS, CPU_TRAINING = 0.46e9, 0.62e9
"""Python, torch and transformers; with transformers' trainer, accelerate and peft: measured with models of no size."""
GPU_PROCESS = 1.5e9
"""CUDA's context, NCCL's buffers and what the allocator cannot use: an assumption."""
ADAM, FLOAT32 = 8, 4
NF4 = 0.5 + 4 / 64
"""Bytes of an nf4 weight: four bits, and a float32 scale for each 64."""
SHARE_OF_DEVICE = 0.4
"""training.sharding=auto cuts a student whose states take more of a device, see `distill.stages._sharding`."""
EAGER_LENGTH = 512
CHUNK_CPU, CHUNK_GPU, CHUNK_ROWS_CPU = 32 * 2**20, 2 * 2**30, 1024
"""Of the fused loss's logits, see `distill_kernels.eager`."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device; `moment` is when they are needed together."""

    weights: float = 0.0
    optimizer: float = 0.0
    gradients: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    kv_cache: float = 0.0
    process: float = 0.0
    moment: str = ""
    host_weights: float = 0.0
    """That wait in the node's own memory, and are fetched by each pass."""
    host_rest: float = 0.0
    """What else lies in the node's own memory."""
    lacks: str = ""
    """What keeps it from running here, however little it takes."""

    @property
    def total(self) -> float:
        """On the device."""
        return sum(getattr(self, name) for name in _ON_DEVICE)

    @property
    def host(self) -> float:
        """In the node's own memory."""
        return self.host_weights + self.host_rest

    @property
    def offloads(self) -> bool:
        return self.host_weights > 0

    @property
    def largest(self) -> str:
        """What takes most, in words."""
        names = [name for name in _ON_DEVICE if name != "process"]
        return max(names, key=lambda name: getattr(self, name)).replace("_", " ")


_ON_DEVICE = [field.name for field in fields(Memory) if field.type is float and not field.name.startswith("host")]


@dataclass(frozen=True)
class Trained:
    """What a training updates, and on how many devices one copy of it lies."""

    parameters: float
    weight_bytes: float
    shards: int
    """1: every process holds the student (DDP, or one process)."""


def process_bytes(hardware: Hardware, *, trains: bool = False) -> float:
    """What a process takes before it holds any model."""
    if hardware.is_cpu:
        return CPU_TRAINING if trains else CPU_PROCESS
    return GPU_PROCESS


def processes(hardware: Hardware) -> int:
    """That train together: one for each GPU; a CPU is one device."""
    return hardware.count


def micro_rows(recipe: Recipe, hardware: Hardware) -> int:
    """Rows of one micro-batch of one process."""
    return -(-recipe.training.batch_size // (recipe.training.gradient_accumulation_steps * processes(hardware)))


def computes_bf16(recipe: Recipe, hardware: Hardware) -> bool:
    """Whether training autocasts, as `distill.stages._trainer.use_bf16` will decide there."""
    if recipe.training.bf16 is not None:
        return recipe.training.bf16
    if not hardware.is_cpu:
        return hardware.device.has_bf16
    from distill.stages._trainer import cpu_multiplies_bf16

    return cpu_multiplies_bf16()


def trained(recipe: Recipe, student: Model, hardware: Hardware) -> Trained:
    """Numbers of the student's training."""
    adapter: Any = recipe.adapter
    lora = student.lora_size(adapter.target_modules) * adapter.rank if adapter.kind != "none" else 0
    updated = lora or student.parameters
    frozen = FLOAT32 * (student.parameters if lora else 0.0)
    if adapter.kind == "qlora":
        frozen = NF4 * student.linear + FLOAT32 * (student.parameters - student.linear)
    weight_bytes = frozen + FLOAT32 * updated
    states = weight_bytes + (FLOAT32 + ADAM) * updated
    wanted = recipe.training.layout
    large = wanted == "auto" and not hardware.is_cpu and states > SHARE_OF_DEVICE * hardware.device.memory_bytes
    cut = processes(hardware) > 1 and adapter.kind != "qlora" and (wanted == "full" or large)
    return Trained(updated, weight_bytes, processes(hardware) if cut else 1)


def of_student(
    recipe: Recipe, student: Model, volume: Volume, hardware: Hardware, *, kind: str | None, live: Memory | None = None
) -> Memory:
    """Training the student. `kind`: of the stored targets that its loss reads; `live`: of a teacher beside it."""
    bf16, rows = computes_bf16(recipe, hardware), micro_rows(recipe, hardware)
    length = volume.longest(recipe.training.max_length)
    eager = hardware.is_cpu and bf16 and recipe.training.max_length <= EAGER_LENGTH
    of = trained(recipe, student, hardware)
    how = Pass(
        rows=rows,
        length=length,
        bf16=bf16,
        attention="eager" if eager else None,
        checkpointing=recipe.training.gradient_checkpointing,
        dropout=recipe.training.dropout,
        cut=of.shards > 1,
        adapter=recipe.adapter.kind,
        rank=getattr(recipe.adapter, "rank", 0),
    )
    made = of_training(student.config, student.layers, how)
    loss, loss_back = _loss(recipe, student, rows * length, hardware, kind=kind, bf16=bf16)
    live = live or Memory()
    held: dict[str, Any] = {
        "weights": of.weight_bytes / of.shards + _gathered(student, of, bf16=bf16) + live.weights,
        "optimizer": ADAM * of.parameters / of.shards,
        "process": process_bytes(hardware, trains=True),
    }
    moments = _moments(recipe, student, of, made, (loss, loss_back))
    whole = [
        Memory(**held, gradients=g, activations=a + live.activations, logits=logits + live.logits, moment=moment)
        for moment, g, a, logits in moments
    ]
    if of.shards == 1:
        # the checkpoint is read in float32 on the CPU, whatever becomes of it
        reading = FLOAT32 * student.parameters + (of.weight_bytes if recipe.adapter.kind == "qlora" else 0)
        if hardware.is_cpu:
            whole.append(Memory(weights=reading, process=held["process"], moment="loading"))
    return max(whole, key=lambda memory: memory.total)


def _moments(
    recipe: Recipe, student: Model, of: Trained, made: Activations, loss: tuple[float, float]
) -> list[tuple[str, float, float, float]]:
    """(moment, bytes of gradients, of activations, of logits and the head's gradient) of the moments that may peak."""
    trains_all = recipe.adapter.kind == "none"
    whole = FLOAT32 * of.parameters / of.shards
    # a gradient exists for one block at a time before it is cut; the root's waits for the end
    uncut = FLOAT32 * (_root(student) + student.largest_block) if of.shards > 1 and trains_all else 0.0
    earlier = whole if recipe.training.gradient_accumulation_steps > 1 else 0.0
    at_embedding = FLOAT32 * student.embedding if trains_all else 0.0
    at_end = whole + uncut + (at_embedding if student.tied or earlier else 0.0)
    return [
        ("forward pass", earlier, made.forward, loss[0]),
        ("backward pass", earlier + uncut, made.backward, loss[1]),
        ("end of the backward pass", at_end, made.last_block, 0.0),
        ("optimizer step", whole, 0.0, 0.0),
    ]


def _trained_of_head(recipe: Recipe, student: Model) -> int:
    """Parameters of the output head that are trained: all, a LoRA's, or none."""
    adapter = recipe.adapter
    if adapter.kind == "none":
        return student.head_size
    return student.head_lora_size(adapter.target_modules) * adapter.rank


def _gathered(student: Model, of: Trained, *, bf16: bool) -> float:
    """Whole weights beside the shards: embeddings, head and norm for the step; two blocks at a time, as computed."""
    blocks = (2.0 if bf16 else FLOAT32) * 2 * student.largest_block
    return FLOAT32 * _root(student) + blocks if of.shards > 1 else 0.0


def _root(student: Model) -> int:
    """Parameters that no block holds."""
    return student.embedding + student.head


def _loss(
    recipe: Recipe, student: Model, tokens: int, hardware: Hardware, *, kind: str | None, bf16: bool
) -> tuple[float, float]:
    """Bytes of the fused loss while it is computed, and of what it keeps for the backward pass."""
    width, V, D = (2 if bf16 else FLOAT32), student.vocab, student.hidden
    head_gradient = FLOAT32 * _trained_of_head(recipe, student)
    hidden_gradients = tokens * D * (width + FLOAT32)
    teachers = width * V if recipe.live else 0
    if kind == "dense":  # these logits are made whole: the student's, the teacher's, their gradient
        return 3.0 * FLOAT32 * tokens * V + head_gradient, FLOAT32 * tokens * V + 2 * head_gradient
    most = max(1, (CHUNK_CPU if hardware.is_cpu else CHUNK_GPU) // (width * V + teachers))
    chunk = min(tokens, most, CHUNK_ROWS_CPU) if hardware.is_cpu else min(tokens, most)
    logits = chunk * (width * V + teachers) + (width * student.head_size if bf16 else 0)
    targets = tokens * 8.0 * {"sampled": 16, "top_k": 64, "frozen_head": D / 2}.get(str(kind), 1)
    # scaled by the incoming gradient, the head's exists twice for a moment
    return logits + head_gradient + hidden_gradients + targets, 2 * head_gradient + hidden_gradients + targets
