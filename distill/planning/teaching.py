"""What a teacher, or any model that is asked, takes on a device: weights, keys and values, logits."""

import json
import math
from typing import Any

from distill.hardware import Hardware
from distill.planning.activations import Pass, of_reading
from distill.planning.memory import FLOAT32, NF4, Memory, process_bytes
from distill.planning.model import BYTES, Model
from distill.planning.placement import Placement, placed
from distill.planning.volume import Volume
from distill.planning.weights import INT8, dtype_of, weight_bytes
from distill.recipe import Recipe
from distill.teacher.hf import Hf
from distill.teacher.vllm import Vllm

LOGITS_BYTES = 64 * 2**20
LOGITS_COPIES = 5
"""Logits, probabilities, their sums and what is drawn exist beside each other for a chunk of positions."""
TOKENS_PER_BATCH = 8192
VLLM_SHARE = 0.9
"""vLLM's default gpu_memory_utilization."""


def teaching_need(recipe: Recipe, hardware: Hardware, model: Model, volume: Volume) -> Memory:
    """Of the recipe's one teacher."""
    teacher: Any = recipe.teacher
    context = min(model.positions or 1 << 30, getattr(teacher, "max_model_len", None) or 1 << 30)
    if teacher.responses == "data":  # as `distill.stages.teach` cuts rows that have their answers
        context = min(context, recipe.training.max_length)
    prompt = min(volume.longest_prompt, context)
    length = min(volume.whole, context)
    if teacher.kind == "vllm":
        return of_served(teacher, model, hardware, length=length)
    targets = recipe.target_kind is not None and not recipe.live
    generates = teacher.responses == "generate" and not (teacher.keep_answers and volume.labelled == 1)
    return of_local(teacher, model, hardware, prompt=prompt, length=length, generates=generates, targets=targets)


def of_local(
    teacher: Hf, model: Model, hardware: Hardware, *, prompt: int, length: int, generates: bool, targets: bool
) -> Memory:
    """teacher=hf, on one device, spread over those of a node, or partly in the node's own memory.

    Args:
        prompt, length: tokens of the longest prompt and of the longest row.
        generates: whether it writes answers, which needs keys and values.
        targets: whether its distributions are stored, which needs its head in float32.
    """
    dtype = dtype_of(teacher, model)
    where = placed(teacher, model, hardware)
    rows = teacher.batch_size
    head = FLOAT32 * model.head_size if targets and dtype != "float32" else 0.0
    chunk = LOGITS_COPIES * max(LOGITS_BYTES, FLOAT32 * model.vocab) if targets else 0.0
    wide = dtype != "float32"
    longest = length if targets else prompt
    reading = of_reading(json.dumps(model.config), Pass(rows, max(8, longest), bf16=wide))
    states = rows * length * model.hidden * BYTES[dtype] if targets else 0
    scoring = Memory(
        weights=where.on_device,
        host_weights=where.on_host,
        activations=reading if targets else 0.0,
        logits=max(0.0, head + chunk + states - (reading if targets else 0.0)),
        process=process_bytes(hardware),
        moment="reading whole rows for their targets",
    )
    if not generates:
        return scoring
    first = of_reading(json.dumps(model.config), Pass(rows, max(8, prompt), bf16=wide))
    # room for the whole answers is taken at once, but a CPU's memory is only taken when it is written
    keys = rows * model.kv_bytes(length, BYTES[dtype]) / where.devices
    if hardware.is_cpu:
        first, keys = max((first, keys * prompt / length), (0, keys), key=sum)
    writing = Memory(
        weights=where.on_device,
        host_weights=where.on_host,
        kv_cache=keys,
        activations=first,
        logits=rows * model.vocab * (FLOAT32 + BYTES[dtype]),
        process=process_bytes(hardware),
        moment="writing answers",
    )
    return max(scoring, writing, key=lambda memory: memory.total)


def of_reader(
    model: Model,
    where: Placement,
    dtype: str,
    hardware: Hardware,
    *,
    length: int,
    positions: int,
    rows: int,
    new_tokens: int,
    prompt: int = 64,
) -> Memory:
    """A model that is scored: likelihoods at so many positions, and greedy answers of `new_tokens` to `rows` prompts.

    `where`: its weights lie; keys and values lie on the same devices.
    """
    config, wide = json.dumps(model.config), dtype != "float32"
    at_once = max(1, TOKENS_PER_BATCH // max(8, length))
    scored = min(positions, at_once * length)
    head = FLOAT32 * model.head_size if wide else 0.0
    # logits and their logarithms of one batch; all positions' lie in the machine's own memory
    logits, collected = 2.0 * FLOAT32 * scored * model.vocab + head, FLOAT32 * positions * model.vocab
    if hardware.is_cpu:
        logits, collected = logits + collected, 0.0
    process = process_bytes(hardware)
    reading = Memory(
        weights=where.on_device,
        host_weights=where.on_host,
        host_rest=collected,
        activations=of_reading(config, Pass(at_once, max(8, length), bf16=wide)),
        logits=logits,
        process=process,
        moment="likelihoods",
    )
    writing = Memory(
        weights=where.on_device,
        host_weights=where.on_host,
        host_rest=collected,
        kv_cache=rows * model.kv_bytes(prompt + new_tokens, BYTES[dtype]) / where.devices,
        activations=of_reading(config, Pass(rows, max(8, prompt), bf16=wide)),
        logits=float(rows * model.vocab * BYTES[dtype]),
        process=process,
        moment="answers",
    )
    return max(reading, writing, key=lambda memory: memory.total)


def of_served(teacher: Vllm, model: Model, hardware: Hardware, *, length: int) -> Memory:
    """teacher=vllm: its share of the weights, and keys and values of the rows in flight at once."""
    parallel, tensor = devices_of(teacher, hardware), min(hardware.count, teacher.tensor_parallel_size)
    return Memory(
        weights=served_bytes(teacher, model) / parallel,
        kv_cache=min(teacher.concurrency, rows_in_flight(teacher, model, hardware, length))
        * model.kv_bytes(length)
        / parallel,
        # of one step's tokens (max-num-batched-tokens), and the whole vocabulary for those that are told
        activations=TOKENS_PER_BATCH * model.hidden * 2 * 8.0 / tensor,
        logits=2.0 * FLOAT32 * 1024 * model.vocab / tensor,
        process=process_bytes(hardware),
        moment="answering",
        lacks=_lacks(teacher, hardware),
    )


def served_bytes(teacher: Vllm, model: Model) -> float:
    """Of the weights of teacher=vllm, on all devices of one copy together."""
    dtype = "bfloat16" if teacher.dtype == "auto" else teacher.dtype
    in_blocks = {"fp8": INT8, "bitsandbytes": NF4, "awq": NF4, "gptq": NF4}.get(teacher.quantization or "")
    if in_blocks is None:
        return weight_bytes(model, dtype)
    return weight_bytes(model, dtype) - (BYTES[dtype] - in_blocks) * model.linear


def served_dtype(teacher: Vllm, model: Model, hardware: Hardware) -> str:
    """Of its arithmetic. "auto" takes float32 checkpoints in 16 bits, and float16 where bfloat16 is not to be had."""
    if teacher.dtype != "auto":
        return teacher.dtype
    return model.stored if model.stored == "bfloat16" and hardware.device.has_bf16 else "float16"


def rows_in_flight(teacher: Vllm, model: Model, hardware: Hardware, length: int) -> int:
    """Rows of `length` tokens whose keys and values have room beside the weights; the others wait. At least one."""
    parallel = devices_of(teacher, hardware)
    share = teacher.gpu_memory_utilization or VLLM_SHARE
    room = share * hardware.device.memory_bytes * parallel - served_bytes(teacher, model) - 3e9 * parallel
    return max(1, int(room // model.kv_bytes(length)))


def copies_of(teacher: Vllm) -> int:
    """That answer beside each other, as its own --data-parallel-size says."""
    flat = [part for word in teacher.extra_arguments for part in word.replace("=", " ").split()]
    found = [
        flat[i + 1] for i, word in enumerate(flat[:-1]) if word.lstrip("-").replace("_", "-") == "data-parallel-size"
    ]
    return int(found[0]) if found and found[0].isdigit() and int(found[0]) else 1


def devices_of(teacher: Vllm, hardware: Hardware) -> int:
    """Of one copy, as far as they are there."""
    return min(hardware.count, teacher.tensor_parallel_size * teacher.pipeline_parallel_size)


def _lacks(teacher: Vllm, hardware: Hardware) -> str:
    """Devices that are not there, or arithmetic that vLLM refuses (below compute capability 8.0: vllm issue 1157)."""
    sizes = [teacher.tensor_parallel_size, teacher.pipeline_parallel_size, copies_of(teacher)]
    names = ["tensor_parallel_size", "pipeline_parallel_size", "--data-parallel-size"]
    needed = math.prod(sizes)
    if needed > hardware.count:
        said = " x ".join(name for name, size in zip(names, sizes, strict=True) if size > 1)
        return f"{said} = {needed} devices, {hardware.count} {'is' if hardware.count == 1 else 'are'} there"
    if teacher.dtype == "bfloat16" and not hardware.device.has_bf16:
        return f"vLLM refuses bfloat16 on {hardware.device.name}, which cannot multiply it; teacher.dtype=float16 runs"
    return ""
