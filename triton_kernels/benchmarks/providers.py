"""Providers: everything that is timed. Ours and PyTorch's are here, those of other packages in `peers.py`.

A provider makes, of a case and its inputs, a function that gives the loss as that package defines it, and says by what
that loss is to be multiplied to be the sum over the rows. Nobody pays for our normalisation: backward starts at one.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import Case, Inputs
from definition import loss_of
from distill_kernels import divergence, linear_divergence, linear_sparse_divergence
from torch import Tensor


class Unsupported(Exception):
    """Why a provider does not take part in a case, one line for a reader; not shown if `obvious`."""

    def __init__(self, reason: str, *, obvious: bool = False) -> None:
        super().__init__(reason)
        self.obvious = obvious


@dataclass(frozen=True, kw_only=True)
class Step:
    """A loss of fixed inputs; `multiplier` times it is the sum over the rows."""

    loss: Callable[[], Tensor]
    multiplier: float = 1.0
    leaves_out: str = ""
    """A constant that the loss is without, so that gradients alone can be compared."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """`make` raises Unsupported where the package has nothing for the case, and is told nothing else."""

    name: str
    make: Callable[[Case, Inputs], Step]
    ours: bool = False
    float32_logits: bool = True
    """Of ours: whether products of 16-bit inputs make logits of 32 bits, so that the accuracy promised holds."""
    environment: dict[str, str] = field(default_factory=dict)
    """Set while the provider runs."""
    capturable: bool = False
    """Whether a step asks nothing of the device, so that it can be part of a CUDA graph."""


def our_providers() -> list[Provider]:
    """The triton kernels where a GPU is asked for, the eager algorithm that runs anywhere, and its exact form."""
    triton, streaming, eager = ({"DISTILL_KERNELS": name} for name in ("triton", "streaming", "eager"))
    return [
        Provider(name="ours, triton", make=_ours_on_a_gpu, ours=True, environment=triton, capturable=True),
        Provider(
            name="ours, triton streaming", make=_ours_streaming, ours=True, environment=streaming, capturable=True
        ),
        Provider(name="ours, eager", make=_ours, ours=True, float32_logits=False, environment=eager, capturable=True),
        Provider(name="ours, eager, float32 products", make=_ours_in_float32, ours=True, environment=eager),
    ]


def pytorch_providers() -> list[Provider]:
    """The definition as one writes it, and the same compiled."""
    return [
        Provider(name="PyTorch", make=lambda case, inputs: Step(loss=lambda: loss_of(case, inputs)), capturable=True),
        Provider(name="torch.compile", make=_compiled, capturable=True),
    ]


def _ours_on_a_gpu(case: Case, inputs: Inputs) -> Step:
    if not _some_tensor(inputs).is_cuda:
        raise Unsupported("the kernels need a GPU")
    if importlib.util.find_spec("triton") is None:
        raise Unsupported("triton is not installed")
    return _ours(case, inputs)


def _ours_streaming(case: Case, inputs: Inputs) -> Step:
    if case.op == "sparse" or not _some_tensor(inputs).is_cuda:
        raise Unsupported("another way only against a teacher's logits on a GPU", obvious=True)
    if importlib.util.find_spec("triton") is not None:
        from distill_kernels.triton_resident import has_clusters

        if not has_clusters(_some_tensor(inputs).device):
            raise Unsupported("what triton does here, where there are no clusters", obvious=True)
    return _ours_on_a_gpu(case, inputs)


def _ours_in_float32(case: Case, inputs: Inputs) -> Step:
    if _some_tensor(inputs).is_cuda or case.op == "logits" or case.dtype is torch.float32:
        raise Unsupported("another way only for 16-bit products on a CPU", obvious=True)
    return _ours(case, inputs, logits_dtype=torch.float32)


def _ours(case: Case, inputs: Inputs, **more: Any) -> Step:
    options: dict[str, Any] = {**case.options, "labels": inputs.labels, **more}
    student = (inputs.student_hidden, inputs.student_head)
    match case.op:
        case "logits":
            return Step(loss=lambda: divergence(inputs.student_logits, inputs.teacher_logits, case.kind, **options))
        case "linear":
            teacher = (inputs.teacher_hidden, inputs.teacher_head)
            return Step(loss=lambda: linear_divergence(*student, *teacher, case.kind, **options))
        case "sparse":
            kept = (inputs.token_ids, inputs.values)
            options["tail"] = case.tail
            return Step(loss=lambda: linear_sparse_divergence(*student, *kept, case.kind, **options))
    raise AssertionError(case.op)


def _compiled(case: Case, inputs: Inputs) -> Step:
    compiled = torch.compile(loss_of)
    return Step(loss=lambda: compiled(case, inputs))


def _some_tensor(inputs: Inputs) -> Tensor:
    return next(tensor for tensor in vars(inputs).values() if tensor is not None)


class Environment:
    """Sets variables for a `with` block."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._wanted, self._before = variables, dict[str, str | None]()

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._wanted}
        os.environ.update(self._wanted)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
