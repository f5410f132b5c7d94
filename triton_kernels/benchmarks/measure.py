"""Measure: seconds, bytes and errors of steps, one forward and backward each, and what the machine can do at most.

Traps that this avoids: a GPU works on after the call returns (events are read); a second run finds its data in cache
(a large buffer is written in between); clocks drift (providers take turns, so a drift meets all of them); the first
runs compile; `max_memory_allocated` counts inputs and gradients, which everybody has.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import Case, Inputs
from distill_kernels.products import product
from providers import Environment, Provider, Step
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Against float64: |loss off| / loss, and ‖gradient off‖ / ‖gradient‖ by the gradient's name."""

    loss: float
    gradients: dict[str, float]

    def worst_gradient(self) -> float:
        return max(self.gradients.values(), default=0.0)


def run_step(case: Case, inputs: Inputs, step: Step) -> Tensor:
    """One forward and backward into fresh gradients; forward alone without gradients."""
    if case.no_grad:
        with torch.no_grad():
            return step.loss()
    for tensor in inputs.students().values():
        tensor.grad = None
    loss = step.loss()
    loss.backward()
    return loss.detach()


def errors_of(case: Case, inputs: Inputs, step: Step, truth: tuple[float, dict[str, Tensor]], loss: Tensor) -> Errors:
    """What the step that has just run left in the gradients and said as its loss, beside the truth."""
    exact_loss, exact = truth
    found = {name: tensor.grad for name, tensor in inputs.students().items()}
    off = {}
    for name, gradient in exact.items():
        tensor = found[name]
        off[name] = float("inf") if tensor is None else _relative(tensor, gradient, step.multiplier)
    loss_off = abs(loss.double().item() * step.multiplier - exact_loss) / abs(exact_loss)
    return Errors(loss=0.0 if step.leaves_out else loss_off, gradients=off)


def _relative(found: Tensor, exact: Tensor, multiplier: float) -> float:
    """‖multiplier · found - exact‖ / ‖exact‖, NaN kept, a slice at a time: a float64 copy may not fit."""
    difference = size = 0.0
    rows = max(1, 2**26 // max(exact[0].numel(), 1))
    for a, b in zip(found.split(rows), exact.split(rows), strict=True):
        wide = b.double()
        difference += (a.double() * multiplier - wide).square().sum().item()
        size += wide.square().sum().item()
    return (difference / size) ** 0.5


def peak_extra_bytes_on_gpu(case: Case, inputs: Inputs, step: Step) -> int:
    """Of one step, above what was allocated before and the gradients that it leaves."""
    for tensor in inputs.students().values():
        tensor.grad = None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_step(case, inputs, step)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - _gradient_bytes(inputs)


def peak_extra_bytes_on_cpu(case: Case, inputs: Inputs, step: Step, warm_up: Callable[[], object]) -> int:
    """Resident memory of this process, likewise; for a process that does nothing else. Linux."""
    warm_up()  # the libraries' own buffers and the compiler
    for tensor in inputs.students().values():
        tensor.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _resident("VmRSS")
    run_step(case, inputs, step)
    return _resident("VmHWM") - before - _gradient_bytes(inputs)


def _gradient_bytes(inputs: Inputs) -> int:
    gradients = [tensor.grad for tensor in inputs.students().values()]
    return sum(gradient.numel() * gradient.itemsize for gradient in gradients if gradient is not None)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def time_in_turns(
    steps: dict[str, Callable[[], object]],
    environments: dict[str, dict[str, str]],
    device: torch.device,
    repetitions: int,
    deadline: float,
    leader: str | None = None,
) -> dict[str, list[float] | Exception]:
    """Seconds of each step, one turn each per round; past `deadline` (time.monotonic) no further round begins.

    A step that raises takes part no longer and leaves its exception (out of memory, beside so many others); one that
    took 2.5 times as long as the `leader` over 8 rounds leaves what was measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    failed: dict[str, Exception] = {}
    timer = _gpu_timer(device) if device.type == "cuda" else _cpu_timer
    names = list(steps)
    for round_number in range(-1, repetitions):  # the first is a warm-up
        if time.monotonic() > deadline and round_number > 0:
            break
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            if name in failed or _far_behind(seconds[name], seconds.get(leader or "", [])):
                continue
            try:
                with Environment(environments.get(name, {})):
                    took = timer(steps[name])
            except Exception as error:
                failed[name] = error.with_traceback(None)  # its frames hold tensors
                continue
            if round_number >= 0:
                seconds[name].append(took)
    return {**seconds, **failed}


def _far_behind(seconds: list[float], leaders: list[float]) -> bool:
    return len(seconds) >= 8 and bool(leaders) and statistics.median(seconds) > 2.5 * statistics.median(leaders)


def _cpu_timer(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _gpu_timer(device: torch.device) -> Callable[[Callable[[], object]], float]:
    cache = torch.empty(2**28, dtype=torch.int8, device=device)  # several times the L2

    def timer(step: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        torch.cuda._sleep(2_000_000)  # a millisecond, in which the host gets ahead: its launches are not timed
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    return timer


def captured(case: Case, inputs: Inputs, step: Step, provider: Provider) -> Callable[[], object]:
    """The step as a CUDA graph's replay."""
    with Environment(provider.environment):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run_step(case, inputs, step)
        torch.cuda.current_stream().wait_stream(side)
        for tensor in inputs.students().values():
            tensor.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step.loss() if case.no_grad else step.loss().backward()
    return graph.replay


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What this machine does at most, measured: a matrix product's FLOP/s by dtype, and a copy's bytes/s."""

    flops: dict[torch.dtype, float]
    bytes_moved: float

    def floor_seconds(self, case: Case) -> float:
        """No faster than its matrix products, or for logits than reading and writing them."""
        if case.op == "logits":
            return case.bytes_moved / self.bytes_moved
        return case.flops / self.flops[case.dtype]


def measure_ceilings(device: torch.device, dtypes: set[torch.dtype], small: bool = False) -> Ceilings:
    """On random data: a product of zeros is faster, for it draws less power."""
    on_gpu = device.type == "cuda"
    size = 128 if small else 8192 if on_gpu else 2048
    flops = {}
    for dtype in dtypes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        # a CPU has two libraries for float32
        ways = (lambda a=a, b=b, out=out: torch.mm(a, b, out=out), lambda a=a, b=b, out=out: product(a, b, out_MN=out))
        flops[dtype] = 2 * size**3 / min(_typical(way, device) for way in ways)
    elements = 2**20 if small else 2**31 if on_gpu else 2**27
    source = torch.randint(0, 100, (elements,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return Ceilings(flops=flops, bytes_moved=2 * elements / _typical(lambda: target.copy_(source), device))


def _typical(call: Callable[[], object], device: torch.device) -> float:
    """Median of ten runs after a warm-up."""
    seconds = time_in_turns({"it": call}, {}, device, 10, float("inf"))["it"]
    if isinstance(seconds, Exception):
        raise seconds
    return statistics.median(seconds)
