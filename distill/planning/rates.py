"""Rates: seconds of reading, writing and training. The shares of a device's peak are assumptions, and said as such."""

from dataclasses import dataclass

from distill.hardware import Hardware
from distill.planning.model import Model

TRAINING_SHARE = 0.40
"""Of the bf16 peak, as 6 N per token counts it: Llama 3 reports 38 to 43 % on H100 (arXiv:2407.21783, table 4)."""
READING_SHARE = 0.45
"""Of the same, for forward passes over long batches."""
BANDWIDTH_SHARE = 0.5
"""Of the memory's bandwidth, while one token of every row is written."""
LAYER_SECONDS = 0.8e-3
"""Least time of one layer's forward pass where transformers starts each GPU kernel from Python: 7B writes at most 40
steps a second, as its users report. A backward pass is taken to cost the same: twice the kernels, started from C++.
vLLM replays graphs and does not pay it."""
EXCHANGE_SECONDS = 15e-6
"""Of one small all-reduce within a node; tensor parallelism takes two a layer."""


@dataclass(frozen=True)
class Work:
    """What is done, how long it takes, and what bounds it."""

    flops: float
    seconds: float
    bound: str


NOTHING = Work(0.0, 0.0, "")


def flops_of(hardware: Hardware, dtype: str) -> float:
    """Per second and device. Without bfloat16 in hardware its products are taken in float32."""
    device = hardware.device
    wide = dtype == "float32" or (dtype == "bfloat16" and not device.has_bf16)
    return device.float32_flops if wide else device.bf16_flops


def launching(model: Model, passes: float, hardware: Hardware) -> float:
    """Least seconds of so many forward passes of transformers, however little there is to compute."""
    return 0.0 if hardware.is_cpu else passes * model.layers * LAYER_SECONDS


def longest_of(rows: float, mean: float, most: float) -> float:
    """Tokens of the longest of so many answers, which a batch of transformers waits for.

    Lengths are taken to be spread exponentially: the longest of n is 1 + 1/2 + … + 1/n means; `most` cuts it.
    """
    return min(most, mean * sum(1 / number for number in range(1, round(rows) + 1)))


def share(hardware: Hardware, of_peak: float) -> float:
    """A CPU's figure is what it reaches already."""
    return 1.0 if hardware.is_cpu else of_peak


def reading(
    model: Model,
    tokens: float,
    length: float,
    hardware: Hardware,
    devices: int,
    *,
    dtype: str = "bfloat16",
    passes: float = 0.0,
) -> Work:
    """Forward passes over `tokens` in rows of `length`; `passes`: how many batches transformers makes of them."""
    flops = tokens * model.flops_per_token(length / 2)
    rate = devices * flops_of(hardware, dtype) * share(hardware, READING_SHARE)
    started = launching(model, passes, hardware)
    return Work(flops, max(flops / rate, started), "arithmetic" if flops / rate >= started else "kernel launches")


def writing(
    model: Model,
    rows: float,
    prompt: float,
    answer: float,
    hardware: Hardware,
    *,
    at_once: float,
    devices: int,
    weight_bytes: float,
    engine: str,
    dtype: str = "bfloat16",
    longest: float | None = None,
    fetching: float = 0.0,
) -> Work:
    """Answers of `answer` tokens to `rows` prompts, `at_once` beside each other on `devices` that work together.

    One step writes a token of each row that has not ended. It reads all weights and all keys and values, and bandwidth
    bounds it.

    Args:
        longest: tokens of a batch's longest answer, where no other row takes the place of one that has ended.
        fetching: seconds in which a pass fetches the weights that wait in the machine's memory.
    """
    at_once = max(1.0, min(at_once, rows))
    each = longest or answer
    writes = at_once * answer / each if each else at_once
    first = reading(model, rows * prompt, prompt, hardware, devices, dtype=dtype)
    context = prompt + answer / 2
    moved = weight_bytes + writes * model.kv_bytes(max(1, round(context)))
    flops = model.flops_per_token(context)
    by_bandwidth = moved / (devices * hardware.device.memory_bandwidth * BANDWIDTH_SHARE)
    by_flops = writes * flops / (devices * flops_of(hardware, dtype) * share(hardware, READING_SHARE))
    exchanged = 2 * model.layers * EXCHANGE_SECONDS if devices > 1 and engine == "vllm" else 0.0
    started = launching(model, 1, hardware) if engine == "transformers" else 0.0
    bounds = {
        "arithmetic": by_flops,
        "kernel launches": started,
        "memory bandwidth": by_bandwidth + exchanged,
        "fetching weights": fetching,
    }
    step = max(by_bandwidth + exchanged, by_flops, started) + fetching
    steps = rows / at_once * each
    bound = max(bounds, key=lambda name: bounds[name])
    seconds = first.seconds + rows / at_once * fetching + steps * step
    return Work(first.flops + rows * answer * flops, seconds, bound)


def training(
    model: Model,
    tokens: float,
    length: float,
    steps: float,
    hardware: Hardware,
    *,
    micro_batches: int,
    busy: int,
    shards: int,
    trained: float,
    recomputes: bool,
    frozen: bool,
    bf16: bool,
) -> Work:
    """Forward and backward passes over `tokens`, and what the devices send each other meanwhile.

    Args:
        busy: devices that have rows; a batch of fewer rows than devices leaves some idle.
        shards: devices over which one copy is cut (FSDP2); 1 where each holds all of it.
        trained: parameters whose gradients are sent.
        recomputes: gradient checkpointing, one more forward pass.
        frozen: with an adapter, weights have no gradient of their own: two passes, not three.
    """
    forward = model.flops_per_token(length / 2)
    counted = tokens * forward * (2 if frozen else 3)
    done = counted + (tokens * forward if recomputes else 0.0)
    dtype = "bfloat16" if bf16 else "float32"
    by_flops = done / (busy * flops_of(hardware, dtype) * share(hardware, TRAINING_SHARE))
    started = launching(model, steps * micro_batches * (3 if recomputes else 2), hardware)
    others = (hardware.count - 1) / hardware.count
    if shards > 1:  # weights for the forward and the backward pass of every micro-batch, then gradients in float32
        root = model.embedding + model.head
        gathered = 4.0 * root + (2.0 if bf16 else 4.0) * (model.parameters - root)
        sent = steps * micro_batches * (2 * gathered + 4.0 * trained) * others
    else:  # an all-reduce of gradients sends and receives each of them
        sent = steps * 2 * 4.0 * trained * others
    by_link = sent / hardware.link_bandwidth if hardware.count > 1 else 0.0
    bounds = {"arithmetic": by_flops, "links between devices": by_link, "kernel launches": started}
    slowest = max(bounds, key=lambda name: bounds[name])
    bound = slowest
    if busy < hardware.count:
        bound += f", {hardware.count - busy} of {hardware.count} devices have no rows"
    return Work(done, bounds[slowest], bound)
