"""cut(): fully_shard (FSDP2), after which every process holds its part of what the leader held, and nothing whole.

The leader's model is whole before; the others come with the same architecture without storage (torch's meta device, see
`distill.stages._loading`), are cut as it is, and receive their parts one tensor at a time. What is sent are bytes: they
arrive bit for bit in any dtype, of which gloo and NCCL know different ones.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# R rows of a weight, P rows of the largest part


def cut(modules: nn.Module | list[nn.Module], mesh: "DeviceMesh", **how: Any) -> None:
    """Cuts the weights of `modules` that are whole so far, in place, onto each process's device; all must call it.

    The leader keeps each whole weight until its parts are sent: one call's weights beside their parts, no more.

    Args:
        mesh: all processes in one row, the leader first.
        how: for `fully_shard`.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    cut_here = modules if isinstance(modules, list) else [modules]
    whole = {where: weight.detach() for where, weight in _weights(cut_here) if not isinstance(weight, DTensor)}
    fully_shard(cast(Any, modules), mesh=mesh, **how)
    for where, weight in _weights(cut_here):
        if where in whole:
            _hand_out(whole.pop(where), weight, mesh)


def same_buffers(module: nn.Module, mesh: "DeviceMesh") -> None:
    """Gives every process the leader's buffers, those that no checkpoint holds (rotary frequencies) too."""
    for buffer in module.buffers():
        if buffer.is_meta:
            torch.utils.swap_tensors(buffer, torch.empty_like(buffer, device=mesh.device_type))
        if buffer.numel():
            sent = buffer.contiguous()
            dist.broadcast(_bytes(sent), src=0, group=mesh.get_group())
            buffer.copy_(sent)


def _weights(modules: Sequence[nn.Module]) -> Iterator[tuple[tuple[int, str], nn.Parameter]]:
    """Where each weight is, and the weight; a tied one once."""
    for number, module in enumerate(modules):
        for name, weight in module.named_parameters():
            yield (number, name), weight


def _hand_out(whole: Tensor, weight: nn.Parameter, mesh: "DeviceMesh") -> None:
    """Sends each process its rows of the leader's `whole` into its part of `weight`, which is cut."""
    if weight.is_meta:
        # swapped, not replaced: tied weights stay one
        own = nn.Parameter(torch.empty_like(weight, device=mesh.device_type), requires_grad=weight.requires_grad)
        torch.utils.swap_tensors(weight, own)
    if not whole.numel():
        return
    part = cast(Any, weight.detach()).to_local()
    received_P = torch.empty(-(-len(whole) // mesh.size()), *whole.shape[1:], dtype=part.dtype, device=part.device)
    parts = None
    if mesh.get_rank() == 0:
        parts = [_bytes(rows) for rows in _equal_parts(whole.to(part.device), mesh.size())]
    dist.scatter(_bytes(received_P), parts, src=0, group=mesh.get_group())
    part.copy_(received_P[: len(part)])


def _equal_parts(whole_R: Tensor, count: int) -> list[Tensor]:
    """`whole_R` in `count` runs of rows, as FSDP2 cuts it; what the last ones lack to the first's length is filled."""
    parts = list(whole_R.chunk(count))
    parts += [whole_R[:0]] * (count - len(parts))
    missing = [len(parts[0]) - len(part) for part in parts]
    return [
        torch.cat([part, part.new_empty(lacks, *part.shape[1:])]) if lacks else part
        for part, lacks in zip(parts, missing, strict=True)
    ]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
