"""Sharding: every process holds a part of each weight and of its optimizer state (FSDP2), or all of them (DDP).

`fully_shard` from torch, block by block: transformers' own wrapping would put the root around the model, whose forward
we do not call, as the loss takes hidden states and the head's weight. Checkpoints stay what one process writes: whole
tensors under the same names, gathered one at a time, so that a run goes on under any number of processes.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from distill.distributed import World
from distill.errors import RecipeError
from distill.stages._parts import cut, same_buffers
from distill.stages._step import States

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ADAM_BYTES = 16
"""Of a trained float32 weight, its gradient and Adam's two averages; what is not trained takes four."""
SHARE_OF_DEVICE = 0.4
"""Of a GPU's memory that they may take whole; activations and the loss need the rest."""


def choose(sharding: Literal["auto", "none", "full"], model: Any) -> Literal["none", "full"]:
    """What `auto` means for this model on this machine; "full" is refused for what cannot be cut.

    Raises:
        RecipeError: "full" with weights of four bits, whose scales do not follow a cut.
    """
    quantised = any(not p.is_floating_point() for p in model.parameters())
    if sharding == "full" and quantised:
        raise RecipeError(
            "training.sharding=full cannot cut quantised weights (adapter=qlora): their scales belong to whole rows.\n"
            "Use training.sharding=none (each process holds the four-bit student), or adapter=lora."
        )
    if sharding != "auto":
        return sharding
    if quantised or not torch.cuda.is_available():
        return "none"
    needed = sum(p.numel() * (ADAM_BYTES if p.requires_grad else p.element_size()) for p in model.parameters())
    return "full" if needed > SHARE_OF_DEVICE * torch.cuda.get_device_properties(0).total_memory else "none"


def mesh_of(world: World) -> "DeviceMesh":
    """All processes in one row."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(world.connect(), (world.size,))


def shard_blocks(model: Any, mesh: "DeviceMesh", *, bf16: bool) -> None:
    """Cuts each block of `model` in place, onto this process's device; the root's part is left to `root`.

    The leader's `model` is whole. The others' may be an outline without storage, and has its parts afterwards.

    With `bf16`, a block's weights are gathered in 16 bits, as autocast would multiply them anyway: half as much is
    sent, and no copy in 16 bits lives beside them. Norms stay in float32, where autocast leaves them too, and so do the
    gradients' sums over the processes.

    Raises:
        RecipeError: the architecture does not say what its blocks are.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    blocks = list(_blocks(model))
    if not blocks:
        raise RecipeError(
            f"training.sharding=full: {type(model).__name__} does not name its blocks; use training.sharding=none."
        )
    policy = MixedPrecisionPolicy()
    if bf16:  # the residual stream stays in float32
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        if bf16 and (norms := _norms(block)):
            cut(norms, mesh)
        cut(block, mesh, mp_policy=policy)


def root(module: nn.Module, mesh: "DeviceMesh") -> nn.Module:
    """`module`, around blocks that are cut already: the rest (embeddings, norm, head) is gathered once a step.

    From here on every process has its parts and all buffers of the leader's model.
    """
    cut(module, mesh)
    same_buffers(module, mesh)
    return module


def shard_teacher(teacher: Any, mesh: "DeviceMesh") -> Callable[..., Tensor]:
    """Cuts a teacher that is not trained; gives what computes its hidden states.

    Its embeddings and head stay gathered after the first step: they never change, and the loss's backward reads them.
    """
    shard_blocks(teacher, mesh, bf16=False)  # as it was loaded
    return root(States(teacher), mesh)


def _blocks(model: Any) -> Iterator[nn.Module]:
    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(body, "_no_split_modules", None) or ())
    return (module for module in body.modules() if type(module).__name__ in names)


def _norms(block: nn.Module) -> list[nn.Module]:
    return [m for m in block.modules() if "norm" in type(m).__name__.lower() and next(m.parameters(), None) is not None]


def whole(tensor: Tensor, *, keep: bool) -> Tensor | None:
    """A tensor, gathered from all processes if it is cut, on the CPU; None where this process does not `keep` it."""
    from torch.distributed.tensor import DTensor

    found = tensor.detach()
    if isinstance(found, DTensor):
        found = found.full_tensor()  # every process takes part
    return found.cpu() if keep else None


def whole_weights(model: Any, *, keep: bool) -> dict[str, Tensor]:
    """`model.state_dict()` with whole tensors; empty where this process does not `keep` them. All must call it."""
    # tied weights are gathered once and stay one tensor: a checkpoint holds them once
    same = {name: str(id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)}
    gathered: dict[str, Tensor | None] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        key: str = same.get(name) or name
        if key not in gathered:
            gathered[key] = whole(tensor, keep=keep)
        state[name] = gathered[key]
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def whole_optimizer(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """`optimizer.state_dict()` as one process would write it. All must call it; only those that `keep` it get it."""
    state = optimizer.state_dict()
    moments = {
        number: {name: whole(value, keep=keep) if torch.is_tensor(value) else value for name, value in of.items()}
        for number, of in state["state"].items()
    }
    return {**state, "state": moments} if keep else {}


def cut_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A whole optimizer's state (`state_dict()` of one process) as this process holds it, part by part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(number: int, value: Any) -> Any:
        weight = weights[number]
        if not torch.is_tensor(value) or value.shape != weight.shape or not isinstance(weight, DTensor):
            return value  # the step count, which is not cut
        # every process has the whole file: each takes its own part, nothing is sent
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)

    moments = {
        number: {name: part(int(number), value) for name, value in of.items()} for number, of in state["state"].items()
    }
    return {**state, "state": moments}
