"""Worker: checks and times cases in a process of its own and appends a JSON line for each thing it learns.

A kernel that crashes takes its process along; `bench.py` reads what was found out and goes on without that kernel.
"""

import ctypes
import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from cases import Case, Inputs, cpu_cases, gpu_cases, make_inputs
from definition import truth_of
from measure import (
    Ceilings,
    Errors,
    captured,
    errors_of,
    measure_ceilings,
    peak_extra_bytes_on_cpu,
    peak_extra_bytes_on_gpu,
    run_step,
    time_in_turns,
)
from peers import peer_providers
from providers import Environment, Provider, Step, Unsupported, our_providers, pytorch_providers

CRASHED = 70
"""Exit code after an error that leaves the GPU unusable for this process."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one worker does; travels as JSON."""

    device: str
    rows: str
    names: list[str]
    records: str
    repetitions: int
    deadline: float
    """Of time.monotonic, which the processes of one machine share."""
    threads: int = 0
    peers: str = ""
    tiny: bool = False
    memory: bool = True
    providers: list[str] = field(default_factory=list)
    skipped: list[list[str]] = field(default_factory=list)
    """Pairs of case and provider that crashed before."""

    def cases(self) -> list[Case]:
        """In the order of `names`."""
        known = {case.name: case for case in (gpu_cases() if self.rows == "gpu" else cpu_cases())}
        return [known[name].tiny() if self.tiny else known[name] for name in self.names]


def all_providers() -> list[Provider]:
    """In the order in which they take their turns and stand in the table."""
    return [*our_providers(), *pytorch_providers(), *peer_providers()]


def chosen_providers(plan: Plan) -> list[Provider]:
    """Those that the plan names by how they begin; all if it names none."""
    wanted = tuple(plan.providers)
    return [provider for provider in all_providers() if not wanted or provider.name.startswith(wanted)]


def main(plan: Plan, memory_of: str = "") -> None:
    """Works the plan; with `memory_of`, only prints the peak extra bytes of that provider in the plan's one case."""
    if plan.peers:
        sys.path.append(plan.peers)  # after what is installed: a peer must not replace our torch
    if plan.threads:
        torch.set_num_threads(plan.threads)
    device = torch.device(plan.device)
    if memory_of:
        provider = next(provider for provider in all_providers() if provider.name == memory_of)
        print(_memory_on_cpu(plan.cases()[0], provider, device))
        return
    cases = plan.cases()
    ceilings = measure_ceilings(device, {case.dtype for case in cases}, plan.tiny)
    flops = {str(dtype).removeprefix("torch."): rate for dtype, rate in ceilings.flops.items()}
    _append(plan, {"ceilings": flops, "bytes_moved": ceilings.bytes_moved})
    for case in cases:
        if time.monotonic() > plan.deadline:
            _append(plan, {"case": case.name, "provider": "every provider", "absent": "no time was left"})
        else:
            _one_case(plan, case, device, ceilings)


def _one_case(plan: Plan, case: Case, device: torch.device, ceilings: Ceilings) -> None:
    _append(plan, {"start": [case.name, "inputs and float64"]})
    torch._dynamo.reset()  # a case compiles for its own shapes, as a training run does
    inputs = make_inputs(case, device)
    truth = truth_of(case, inputs)
    right: dict[str, tuple[Provider, Step]] = {}
    found: dict[str, dict[str, Any]] = {}
    plain: Errors | None = None
    for provider in chosen_providers(plan):
        if [case.name, provider.name] in plan.skipped:
            continue
        if time.monotonic() > plan.deadline:
            _absent(plan, case, provider, "no time was left")
            continue
        _append(plan, {"start": [case.name, provider.name]})
        try:
            step = provider.make(case, inputs)
            with Environment(provider.environment):
                loss = run_step(case, inputs, step)
            errors = errors_of(case, inputs, step, truth, loss)
            wrong = what_is_wrong(case, errors)
            extra = None if wrong else _peak_extra(plan, case, provider, inputs, step)
        except Unsupported as reason:
            if not reason.obvious:
                _absent(plan, case, provider, str(reason))
            continue
        except torch.OutOfMemoryError:
            _absent(plan, case, provider, "out of memory", ours=provider.ours)
            continue
        except Exception as error:
            _absent(plan, case, provider, _first_line(error), ours=provider.ours)
            if "CUDA error" in str(error):
                sys.exit(CRASHED)
            continue
        finally:
            _release(inputs, device)
        record = {"case": case.name, "provider": provider.name, "ours": provider.ours, "extra_bytes": extra}
        found[provider.name] = {**record, "loss_error": errors.loss, "gradient_errors": errors.gradients}
        if provider.name == "PyTorch":
            plain = errors
        if step.leaves_out:
            found[provider.name] |= {"note": f"its loss is without {step.leaves_out}: not compared", "loss_error": None}
        if wrong:
            found[provider.name]["note"] = f"WRONG: {wrong}"
        else:
            right[provider.name] = (provider, step)
    mean_loss = truth[0] / case.num_rows
    for name, record in found.items():
        if record["ours"] and name in right:
            errors = Errors(loss=record["loss_error"], gradients=record["gradient_errors"])
            record["missed"] = accuracy_missed(case, right[name][0], errors, mean_loss, plain)
    del truth
    _append(plan, {"start": [case.name, "timing"]})
    timed = _timed(plan, case, inputs, right, device, found)
    facts = {"title": case.title, "floor_seconds": ceilings.floor_seconds(case), "mean_loss": mean_loss}
    for name, record in found.items():
        _append(plan, {**record, **facts, "target_ms": case.target_ms, "seconds": timed.get(name, [])})


def _timed(
    plan: Plan,
    case: Case,
    inputs: Inputs,
    right: dict[str, tuple[Provider, Step]],
    device: torch.device,
    found: dict[str, dict[str, Any]],
) -> dict[str, list[float]]:
    steps = {}
    for name, (provider, step) in right.items():
        steps[name] = lambda step=step: run_step(case, inputs, step)
        if case.cuda_graph and device.type == "cuda" and not provider.capturable:
            # on torch 2.11 a failed capture is the end of the process (pytorch/pytorch#180395)
            found[name]["note"] = "asks the device, so no CUDA graph; timed without"
        elif case.cuda_graph and device.type == "cuda":
            try:
                steps[name] = captured(case, inputs, step, provider)
            except Exception as error:
                found[name]["note"] = f"no CUDA graph ({type(error).__name__}), timed without"
    if not steps:
        return {}
    environments = {name: provider.environment for name, (provider, _) in right.items()}
    leader = next((name for name, (provider, _) in right.items() if provider.ours and device.type == "cuda"), None)
    times = time_in_turns(steps, environments, device, plan.repetitions, plan.deadline, leader)
    _release(inputs, device)
    for name, taken in times.items():
        if isinstance(taken, Exception):
            found[name]["note"] = f"not timed: {_first_line(taken)}"
    return {name: taken for name, taken in times.items() if isinstance(taken, list)}


def what_is_wrong(case: Case, errors: Errors) -> str:
    """Why this computes another function; empty if it is the same up to the rounding of its dtype.

    Logits of 16 bits may be off by a few hundredths in the loss of close models, and more in its gradient.
    """
    loss_limit, gradient_limit = (1e-3, 1e-3) if case.dtype is torch.float32 else (0.1, 0.25)
    if not errors.loss <= loss_limit:  # so that NaN is wrong
        return f"loss off by {errors.loss:.1e}"
    for name, error in errors.gradients.items():
        if not error <= gradient_limit:
            return f"{name} off by {error:.1e}"
    return ""


def accuracy_missed(case: Case, provider: Provider, errors: Errors, mean_loss: float, plain: Errors | None) -> str:
    """How ours misses what it promises; empty if it keeps it.

    With float32 logits, or logits that are given: the loss within 1e-6 (1 + loss), gradients within 4e-3 where they are
    of 16 bits and 2e-5 in float32. Where 16-bit inputs make 16-bit logits: 1.1 times PyTorch's error at most.
    """
    if case.op != "logits" and case.dtype is not torch.float32 and not provider.float32_logits:
        if plain is None:
            return ""
        for name, error in errors.gradients.items():
            if error > 1.1 * plain.gradients[name]:
                return f"{name} off by {error:.1e}, PyTorch by {plain.gradients[name]:.1e}"
        return ""
    # a loss without the teacher's entropy is as large as one likes
    allowed = 1e-6 * (1 + abs(mean_loss)) / abs(mean_loss)
    if errors.loss > allowed:
        return f"loss off by {errors.loss:.1e}, promised {allowed:.1e}"
    limit = 2e-5 if case.dtype is torch.float32 else 4e-3
    if errors.worst_gradient() > limit:
        return f"gradient off by {errors.worst_gradient():.1e}, promised {limit:.0e}"
    return ""


def _peak_extra(plan: Plan, case: Case, provider: Provider, inputs: Inputs, step: Step) -> int | None:
    if not plan.memory:
        return None
    if plan.device != "cpu":
        with Environment(provider.environment):
            return peak_extra_bytes_on_gpu(case, inputs, step)
    alone = json.dumps(asdict(replace(plan, names=[case.name])))
    ran = subprocess.run([sys.executable, __file__, alone, provider.name], capture_output=True, text=True)
    return int(ran.stdout.split()[-1]) if ran.returncode == 0 else None


def _memory_on_cpu(case: Case, provider: Provider, device: torch.device) -> int:
    inputs = make_inputs(case, device)
    step = provider.make(case, inputs)

    def warm_up() -> None:
        run_step(case, inputs, step)
        _release(inputs, device)
        ctypes.CDLL(None).malloc_trim(0)  # what is kept for reuse would hide as much of the step's own peak

    with Environment(provider.environment):
        return peak_extra_bytes_on_cpu(case, inputs, step, warm_up)


def _release(inputs: Inputs, device: torch.device) -> None:
    for tensor in inputs.students().values():
        tensor.grad = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    words = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {words[0][:160]}"


def _absent(plan: Plan, case: Case, provider: Provider, reason: str, ours: bool = False) -> None:
    _append(plan, {"case": case.name, "provider": provider.name, "absent": reason, "failed": ours})


def _append(plan: Plan, record: dict[str, Any]) -> None:
    with Path(plan.records).open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])), *sys.argv[2:])
