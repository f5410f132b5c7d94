"""A call taken apart for autograd, which keeps its tensors until backward, refuses those that were changed in place
since, and lets go of them afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Where a tensor was."""

    index: int


def taken_out(part: Any, tensors: list[Tensor]) -> Any:
    """A dataclass of dataclasses with slots for its tensors, which are appended to `tensors`.

    Inference tensors stay where they are: autograd refuses them, and they can be changed in inference mode alone.
    """
    if isinstance(part, Tensor):
        if part.is_inference():
            return part
        tensors.append(part.detach())
        return Slot(len(tensors) - 1)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: taken_out(getattr(part, field.name), tensors) for field in fields(part)})
    return part


def put_back(part: Any, tensors: Sequence[Tensor]) -> Any:
    """What `taken_out` was given."""
    if isinstance(part, Slot):
        return tensors[part.index]
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: put_back(getattr(part, field.name), tensors) for field in fields(part)})
    return part
