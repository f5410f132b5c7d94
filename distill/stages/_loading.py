"""Loading: the leader alone reads a model that is to be cut; the others build the same architecture without storage.

Eight processes that each read 28 GB fill a host of 224; so a process other than the leader never holds more than its
parts, which `distill.stages._parts` hands out. Where every process is to hold the whole model (DDP), each reads it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.distributed import World
from distill.errors import StageFailed
from distill.stages._sharding import choose


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    `read(device)` gives it whole: on "cpu", or with None wherever it is to run. `outline()` gives the same architecture
    with every weight and buffer on torch's meta device, which has shapes and no storage.
    """

    read: Callable[[str | None], Any]
    outline: Callable[[], Any]


def read_student(source: Source, sharding: Literal["auto", "none", "full"], together: World) -> Any:
    """The model to train, whole on the CPU; in processes other than the leader its outline, where it is to be cut.

    The leader reads first, and decides; what it leaves on the disk, the others find.
    """
    if together.size == 1:
        return source.read("cpu")
    model = source.read("cpu") if together.leads else None
    if together.share(choose(sharding, model) if together.leads else None) == "full":
        return _outlined(model, source, together)
    return model if together.leads else source.read("cpu")


def read_to_cut(source: Source, together: World) -> Any:
    """A model that is cut: whole on the leader's CPU, its outline in all other processes."""
    return _outlined(source.read("cpu") if together.leads else None, source, together)


def _outlined(model: Any, source: Source, together: World) -> Any:
    """The leader's `model`, and in the others its outline with the dtypes that the leader read.

    Raises:
        StageFailed: this process builds another architecture than the leader.
    """
    if together.leads:
        together.share([described for described, _ in _tensors(model)])
        return model
    told = together.share()
    model = source.outline()
    mine = list(_tensors(model))
    for (described, tensor), theirs in zip(mine, told, strict=False):
        # the checkpoint's own dtype, where the recipe names none, is known to who read it
        if described[:-1] == theirs[:-1] and described != theirs:
            tensor.data = tensor.data.to(getattr(torch, theirs[-1]))
    if (found := [described for described, _ in _tensors(model)]) != told:
        other = next((pair for pair in zip(found, told, strict=False) if pair[0] != pair[1]), (len(found), len(told)))
        raise StageFailed(
            f"Process {together.rank} builds another {type(model).__name__} than process 0 has read: {other[0]} where "
            f"that has {other[1]}.\nAll processes need the same versions of transformers and peft, and the same "
            "config.json. training.sharding=none lets each of them read the whole model."
        )
    return model


def _tensors(model: nn.Module) -> Iterator[tuple[list[Any], Tensor]]:
    """Every weight and buffer: [name, the name that it is tied to, shape, dtype] as JSON has it, and the tensor."""
    first: dict[int, str] = {}
    for kind in (model.named_parameters, model.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            tied_to = first.setdefault(id(tensor), name)
            yield [name, tied_to, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")], tensor
