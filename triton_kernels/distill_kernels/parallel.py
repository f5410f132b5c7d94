"""What DTensors mean: heads that lie over several processes, brought to where the call needs them.

    student_hidden   student_head                        what happens
    a tensor         DTensor, Shard(0) on one dimension  Each process has rows of its own. Heads and biases are gathered
                                                         for the call; a gradient is that of the sum of all processes'
                                                         results, reduced and scattered back.
    DTensor,         DTensor, Shard(0) on the same       Each process has all rows and its part of the vocabulary. Only
    Replicate        mesh of one dimension               a few numbers per row and one gradient by the hidden states are
                                                         sent. The result is a DTensor, Replicate.

The sum over processes is the derivative of what was computed. FSDP2 takes the mean for the weights that it gathers
itself; who trains a head of the first kind beside it divides the loss by the number of processes.

A LowRankHead's `weight` and `lora_B` lie as the head does; `lora_A` is Replicate in the second case and Shard(0) in the
first. Labels, weights and ids of the second case are DTensors, Replicate, or tensors that are the same everywhere.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill_kernels import arguments
from distill_kernels.calls import Teacher
from distill_kernels.columns import WHOLE, Columns, Cut
from distill_kernels.student import Student

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Rows = Mapping[str, Any]
"""By name: what each row has besides hidden states; tensors, numbers or None."""


@dataclass(frozen=True, kw_only=True)
class Local:
    """A call's tensors as this process works on them, attached to the graph of what was given."""

    student: Student
    teacher: Teacher | None
    rows: Rows
    columns: Columns
    result: Callable[[Tensor], Tensor]
    """From the loss of this process to what the caller gets."""


def localised(student: Student, teacher: Teacher | None, rows: Rows) -> Local:
    """The call of this process. Without a DTensor, everything as it is.

    Raises:
        ValueError, TypeError: a placement that has no meaning here, or shapes that do not fit.
    """
    if not any(_is_dtensor(tensor) for tensor in (*student.tensors, *(teacher or ()), *rows.values())):
        return Local(student=student, teacher=teacher, rows=rows, columns=WHOLE, result=lambda loss: loss)
    arguments.check_student(student)
    if teacher is not None:
        arguments.check_projection("teacher", *teacher)
    return _cut(student, teacher, rows) if _is_dtensor(student.hidden) else _gathered(student, teacher, rows)


def refuse_dtensors(name: str, *tensors: Any) -> None:
    """Refuses DTensors where nothing is done for them."""
    if any(_is_dtensor(tensor) for tensor in tensors):
        raise TypeError(
            f"{name}: found a DTensor; needed tensors. Call full_tensor() on them, or pass hidden states and heads to "
            f"linear_divergence, which never needs whole logits."
        )


def _is_dtensor(tensor: Any) -> bool:
    # looked up, not imported: where nobody imported DTensor there is none, and importing it takes a second
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _gathered(student: Student, teacher: Teacher | None, rows: Rows) -> Local:
    """Hidden states of this process's own rows before whole heads."""
    _refuse_rows_of_dtensors("student_hidden", rows)
    student = replace(
        student,
        head=_whole("student_head", student.head),
        bias=_whole("student_bias", student.bias),
        lora_A=_whole("student_head.lora_A", student.lora_A),
        lora_B=_whole("student_head.lora_B", student.lora_B),
    )
    if teacher is not None:
        hidden, head, bias = teacher
        _refuse_rows_of_dtensors("student_hidden", {"teacher_hidden": hidden})
        with torch.no_grad():
            teacher = hidden, _whole("teacher_head", head), _whole("teacher_bias", bias)
    return Local(student=student, teacher=teacher, rows=rows, columns=WHOLE, result=lambda loss: loss)


def _whole(name: str, tensor: Any) -> Any:
    """The tensor of all processes; what comes back as its gradient is summed over them and cut again."""
    if not _is_dtensor(tensor):
        return tensor
    from torch.distributed.tensor import Partial, Replicate, Shard

    _check_placement(name, tensor, Shard(0), None)
    return tensor.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])


def _cut(student: Student, teacher: Teacher | None, rows: Rows) -> Local:
    """All rows before this process's part of the vocabulary."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    if torch.compiler.is_compiling():  # without fullgraph this breaks the graph, and the call runs uncompiled
        raise ValueError(
            "student_hidden: found a DTensor under torch.compile; needed an uncompiled call, for its exchange is not "
            "part of a graph. Call the op from a function with @torch.compiler.disable."
        )
    hidden: Any = student.hidden
    mesh = hidden.device_mesh
    _check_placement("student_hidden", hidden, Replicate(), mesh)
    local = {"hidden": hidden.to_local(grad_placements=[Replicate()])}
    for name, placement in (("head", Shard(0)), ("bias", Shard(0)), ("lora_A", Replicate()), ("lora_B", Shard(0))):
        tensor = getattr(student, name)
        prefix = "student_head." if name.startswith("lora") else "student_"
        local[name] = _local(prefix + name, tensor, placement, mesh)
    num_student = student.head.shape[0]
    shared = num_student if teacher is None else min(num_student, teacher[1].shape[0])
    columns = _columns(num_student, shared, mesh)
    if len(local["head"]) != _part(num_student, columns.num_processes, mesh.get_local_rank())[1]:
        raise ValueError(
            f"student_head: found {len(local['head'])} of {num_student} rows here; needed the cut of torch.chunk, as "
            f"distribute_tensor and fully_shard make it."
        )
    if teacher is not None:
        teacher = _teacher_part(teacher, num_student, shared, mesh)
    plain = {name: _local(name, value, Replicate(), mesh, strict=False) for name, value in rows.items()}
    return Local(
        student=replace(student, **local),
        teacher=teacher,
        rows=plain,
        columns=columns,
        result=lambda loss: DTensor.from_local(loss, mesh, [Replicate()], run_check=False),
    )


def _local(name: str, tensor: Any, placement: Any, mesh: "DeviceMesh", *, strict: bool = True) -> Any:
    """This process's part. `strict` refuses a tensor that is no DTensor."""
    if tensor is None or (not strict and not _is_dtensor(tensor)):
        return tensor
    if not _is_dtensor(tensor):
        raise TypeError(
            f"{name}: found a tensor beside DTensors in student_hidden; needed a DTensor on the same mesh, "
            f"[{placement!r}]. Make it one with distribute_tensor(tensor, mesh, [{placement!r}])."
        )
    _check_placement(name, tensor, placement, mesh)
    # a replicated parameter's gradient is made the same on every process before it is returned
    return tensor.to_local(grad_placements=[placement])


def _check_placement(name: str, tensor: Any, placement: Any, mesh: "DeviceMesh | None") -> None:
    if tensor.device_mesh.ndim != 1 or tuple(tensor.placements) != (placement,):
        raise ValueError(
            f"{name}: found a DTensor with placements {list(tensor.placements)} on a mesh of "
            f"{tensor.device_mesh.ndim} dimensions; needed [{placement!r}] on a mesh of one dimension. "
            f"Call redistribute, or full_tensor() for a tensor that every process has whole."
        )
    if mesh is not None and tensor.device_mesh != mesh:
        raise ValueError(
            f"{name}: found {tensor.device_mesh}; needed {mesh}, as in student_hidden. Distribute both on one mesh."
        )


def _refuse_rows_of_dtensors(where: str, rows: Rows) -> None:
    for name, tensor in rows.items():
        if _is_dtensor(tensor):
            raise TypeError(
                f"{name}: found a DTensor with {where} a tensor; needed both of one kind. DTensors that are Replicate "
                f"say that each process has the same rows; tensors, that each has its own."
            )


def _part(num_tokens: int, num_processes: int, rank: int) -> tuple[int, int]:
    """First token and number of tokens of a process: equal parts but the last ones, as torch.chunk cuts."""
    each = -(-num_tokens // num_processes)
    begin = min(rank * each, num_tokens)
    return begin, min(each, num_tokens - begin)


def _columns(num_student: int, shared: int, mesh: "DeviceMesh") -> Cut:
    num_processes, rank = mesh.size(), mesh.get_local_rank()
    begin, here = _counted_part(num_student, shared, num_processes, rank)
    return Cut(
        group=mesh.get_group(),
        num_processes=num_processes,
        rank=rank,
        num_tokens=shared,
        begin=begin,
        here=here,
        most=_counted_part(num_student, shared, num_processes, 0)[1],
        width=_part(num_student, num_processes, 0)[1],
    )


def _counted_part(num_student: int, shared: int, num_processes: int, rank: int) -> tuple[int, int]:
    """First token and number of tokens of a process's part of the student's head that both models have."""
    begin, here = _part(num_student, num_processes, rank)
    return begin, max(0, min(here, shared - begin))


def _teacher_part(teacher: Teacher, num_student: int, shared: int, mesh: "DeviceMesh") -> Teacher:
    """The teacher's hidden states, and its head and bias for the tokens that the student has here."""
    from torch.distributed.tensor import Replicate, Shard

    names = (("hidden", Replicate()), ("head", Shard(0)), ("bias", Shard(0)))
    num_teacher = teacher[1].shape[0]
    with torch.no_grad():
        hidden, *parts = (
            _local(f"teacher_{name}", tensor, placement, mesh)
            for (name, placement), tensor in zip(names, teacher, strict=True)
        )
        head, bias = (_moved(part, num_teacher, num_student, shared, mesh) for part in parts)
    return hidden, head, bias


def _moved(part: Tensor | None, num_teacher: int, num_student: int, shared: int, mesh: "DeviceMesh") -> Any:
    """Rows of the teacher's head for the student's cut: vocabularies of other sizes are cut at other tokens.

    Vocabularies of one family differ by some padding, so few rows move, and none where the sizes are equal.
    """
    size, rank = mesh.size(), mesh.get_local_rank()
    held = [_part(num_teacher, size, process) for process in range(size)]
    needed = [_counted_part(num_student, shared, size, process) for process in range(size)]
    if part is None or all(
        begin >= first and begin + num <= first + count
        for (first, count), (begin, num) in zip(held, needed, strict=True)
        if num
    ):
        first, (begin, num) = held[rank][0], needed[rank]
        return None if part is None else part[begin - first :][:num] if num else part[:0]
    sent = [_overlap(held[rank], need) for need in needed]
    received = [_overlap(have, needed[rank]) for have in held]
    mine = [part[begin - held[rank][0] :][:num] for begin, num in sent]
    moved = part.new_empty(sum(num for _, num in received), *part.shape[1:])
    splits: Sequence[list[int]] = [[num for _, num in received], [num for _, num in sent]]
    torch.distributed.all_to_all_single(moved, torch.cat(mine), *splits, group=mesh.get_group())
    return moved


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """The common part of two ranges, as first and number."""
    begin, end = max(one[0], other[0]), min(one[0] + one[1], other[0] + other[1])
    return (begin, end - begin) if end > begin else (one[0], 0)
