"""The public ops as operators of torch.library, so that torch.compile(fullgraph=True) sees one opaque node for each.

ops.py calls these while it is being compiled. An operator evaluates what the uncompiled op evaluates, checks included:
what depends on the numbers in labels and token_ids is refused when the compiled code runs. It returns the loss and the
gradients by the student's tensors; one that is not wanted is empty. Which are wanted, and autocast's dtype, are
settled while compiling, for neither is known inside the compiled code.

    torch.ops.distill_kernels.divergence               students: logits
    torch.ops.distill_kernels.linear_divergence        students: hidden states, head, bias, lora_A, lora_B
    torch.ops.distill_kernels.linear_sparse_divergence
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from distill_kernels import arguments
from distill_kernels.autograd import scaled, total
from distill_kernels.calls import Teacher, divergence_call, linear_call, sparse_call
from distill_kernels.eager import LinearCall
from distill_kernels.materialised import LogitsCall
from distill_kernels.student import Student

_SETTINGS = ("kind", "beta", "alpha", "temperature", "hard_weight")
_SETTINGS += ("student_scale", "student_softcap", "teacher_scale", "teacher_softcap")
_OPTIONS = (
    "str kind, float beta, float alpha, float temperature, float hard_weight, float student_scale, "
    "float? student_softcap, float teacher_scale, float? teacher_softcap"
)
_ROWS = "Tensor? labels, Tensor? row_weight, Tensor? extra_weight, int ignore_index, str reduction"
_PRODUCTS = "ScalarType? logits_dtype, int? chunk_bytes, ScalarType? autocast_dtype"
_STUDENT = "Tensor student_hidden, Tensor student_head, Tensor? student_bias, Tensor? lora_A, Tensor? lora_B"
_LORA = "float lora_scale"
_TEACHER = "Tensor teacher_hidden, Tensor teacher_head, Tensor? teacher_bias"
_SPARSE = "Tensor token_ids, Tensor values, str tail"


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    row_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    options: dict[str, Any],
) -> Tensor:
    """`ops.divergence` as one node."""
    rest = (labels, row_weight, None, ignore_index, reduction, *_ordered(options), _wanted([student_logits]))
    return _divergence(student_logits, teacher_logits, *rest)[0]


def linear_divergence(
    student: Student,
    teacher: Teacher,
    labels: Tensor | None,
    row_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    logits_dtype: torch.dtype | None,
    chunk_bytes: int | None,
    options: dict[str, Any],
) -> Tensor:
    """`ops.linear_divergence` as one node."""
    rows = (labels, row_weight, None, ignore_index, reduction)
    products = (logits_dtype, chunk_bytes, _autocast_dtype(student.hidden))
    tensors, scale = student.tensors, student.lora_scale
    return _linear(*tensors, scale, *teacher, *rows, *products, *_ordered(options), _wanted(tensors))[0]


def linear_sparse_divergence(
    student: Student,
    token_ids: Tensor,
    values: Tensor | float,
    tail: str,
    labels: Tensor | None,
    row_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    logits_dtype: torch.dtype | None,
    chunk_bytes: int | None,
    options: dict[str, Any],
) -> Tensor:
    """`ops.linear_sparse_divergence` as one node."""
    if not isinstance(values, Tensor):
        values = torch.full((), float(values), device=token_ids.device).expand(token_ids.shape)
    rows = (labels, row_weight, None, ignore_index, reduction)
    products = (logits_dtype, chunk_bytes, _autocast_dtype(student.hidden))
    tensors, scale, sparse = student.tensors, student.lora_scale, (token_ids, values, tail)
    return _sparse(*tensors, scale, *sparse, *rows, *products, *_ordered(options), _wanted(tensors))[0]


def _wanted(students: Sequence[Tensor | None]) -> list[bool]:
    on = torch.is_grad_enabled()
    return [on and tensor is not None and tensor.requires_grad for tensor in students]


def _ordered(options: dict[str, Any]) -> list[Any]:
    return [options[name] for name in _SETTINGS]


def _named(settings: Sequence[Any]) -> dict[str, Any]:
    return dict(list(zip(_SETTINGS, settings, strict=True)))


def _autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _autocast(tensor: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    device = tensor.device.type
    if dtype is None and not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def _results(
    call: LogitsCall | LinearCall,
    students: Sequence[Tensor | None],
    shapes: Sequence[torch.Size],
    extra_weight: Tensor | None,
    reduction: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Loss and gradients in the dtypes that `_shapes_of` promises."""
    at_once = [flag and (reduction == "sum" or extra_weight is not None) for flag in wanted]
    extra_N = None if extra_weight is None else extra_weight.reshape(-1)
    loss_N, gradients = call.evaluate(students, at_once, extra_N)
    loss = total(loss_N) if reduction == "sum" else loss_N.view(shapes[0][:-1])
    results = [loss]
    for index, gradient in enumerate(gradients):
        if gradient is None:
            results.append(loss_N.new_empty(0))
        else:
            dtype = _sum_dtype(gradient.dtype) if index else gradient.dtype
            results.append(gradient.to(dtype).view(shapes[index]))
    return results


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of the gradients which are summed over rows: whether one group held them all is not known in advance."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def _shapes_of(
    students: Sequence[Tensor | None],
    dtype: torch.dtype,
    extra_weight: Tensor | None,
    reduction: str,
    wanted: list[bool],
) -> list[Tensor]:
    """Empty tensors like the results; `dtype` is that of the first student's gradient."""
    first = students[0]
    assert first is not None
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    results = [first.new_empty(() if reduction == "sum" else first.shape[:-1], dtype=loss_dtype)]
    for index, (student, flag) in enumerate(zip(students, wanted, strict=True)):
        if student is None or not flag or (reduction == "none" and extra_weight is None):
            results.append(first.new_empty(0, dtype=loss_dtype))
        else:
            results.append(student.new_empty(student.shape, dtype=_sum_dtype(dtype) if index else dtype))
    return results


def _run_divergence(
    student_logits, teacher_logits, labels, row_weight, extra_weight, ignore_index, reduction, *options
):
    *settings, wanted = options
    rows = (labels, row_weight, ignore_index, reduction)
    call = divergence_call(student_logits, teacher_logits, *rows, _named(settings))
    return tuple(_results(call, [student_logits], [student_logits.shape], extra_weight, reduction, wanted))


def _run_linear(*inputs):
    student, teacher, rows, products, settings, wanted = _cut(inputs)
    labels, row_weight, extra_weight, ignore_index, reduction = rows
    logits_dtype, chunk_bytes, autocast_dtype = products
    rest = (labels, row_weight, ignore_index, reduction, logits_dtype, chunk_bytes, _named(settings))
    with _autocast(student.hidden, autocast_dtype):
        call = linear_call(student, teacher, *rest)
    return _linear_results(call, student, extra_weight, reduction, wanted)


def _run_sparse(*inputs):
    student, sparse, rows, products, settings, wanted = _cut(inputs)
    token_ids, values, tail = sparse
    labels, row_weight, extra_weight, ignore_index, reduction = rows
    logits_dtype, chunk_bytes, autocast_dtype = products
    rest = (labels, row_weight, ignore_index, reduction, logits_dtype, chunk_bytes, _named(settings))
    with _autocast(student.hidden, autocast_dtype):
        call = sparse_call(student, token_ids, values, tail, *rest)
    return _linear_results(call, student, extra_weight, reduction, wanted)


def _linear_results(call, student, extra_weight, reduction, wanted):
    shapes = [torch.Size() if tensor is None else tensor.shape for tensor in student.tensors]
    return tuple(_results(call, student.flat_tensors, shapes, extra_weight, reduction, wanted))


def _cut(inputs):
    """A linear operator's arguments in groups; the last are the flags of the wanted gradients."""
    groups, start = [], 0
    for length in (6, 3, 5, 3, len(_SETTINGS)):
        groups.append(inputs[start : start + length])
        start += length
    *tensors, lora_scale = groups[0]
    return Student.from_tensors(tensors, lora_scale), *groups[1:], inputs[-1]


def _like_divergence(*inputs):
    *_, wanted = inputs
    student, extra_weight, reduction = inputs[0], inputs[4], inputs[6]
    return tuple(_shapes_of([student], student.dtype, extra_weight, reduction, wanted))


def _like_linear(*inputs):
    student, _, rows, products, _, wanted = _cut(inputs)
    with _autocast(student.hidden, products[2]):
        dtype = arguments.product_dtype("student", student.hidden, student.head, products[0])
    return tuple(_shapes_of(student.tensors, dtype, rows[2], rows[4], wanted))


def _register(name: str, run: Any, like: Any, tensors: str, middle: str, num_students: int) -> Any:
    """The operator with its shapes and its derivative; `extra_weight` is where backward puts what comes in."""
    results = ", ".join(["Tensor"] * (num_students + 1))
    schema = f"({tensors}, {middle}, {_OPTIONS}, bool[] wanted) -> ({results})"
    operator: Any = torch.library.custom_op(f"distill_kernels::{name}", run, mutates_args=(), schema=schema)
    operator.register_fake(like)
    extra_at = [argument.strip() for argument in schema.split(",")].index("Tensor? extra_weight")
    reduction_at = extra_at + 2

    def remember(ctx, inputs, output):
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[:num_students]]
        ctx.wanted, ctx.reduction = inputs[-1], inputs[reduction_at]
        ctx.set_materialize_grads(False)
        if ctx.reduction == "sum":
            ctx.save_for_backward(*output[1:])
            ctx.others = [None] * len(inputs)
        else:
            ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
            ctx.places = [index for index, value in enumerate(inputs) if isinstance(value, Tensor)]
            ctx.save_for_backward(*(inputs[index] for index in ctx.places))

    def backward(ctx, upstream, *_):
        results: list[Tensor | None] = [None] * len(ctx.others)
        if upstream is None or not any(ctx.wanted):
            return tuple(results)
        if ctx.reduction == "sum":
            gradients = ctx.saved_tensors
        else:
            inputs = list(ctx.others)
            for index, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
                inputs[index] = tensor.detach()
            inputs[extra_at] = upstream
            gradients = operator(*inputs)[1:]
        for index, (gradient, flag) in enumerate(zip(gradients, ctx.wanted, strict=True)):
            if flag:
                once = ctx.reduction == "none"
                dtype = ctx.dtypes[index]
                results[index] = gradient.to(dtype) if once else scaled(gradient, upstream, dtype)
        return tuple(results)

    operator.register_autograd(backward, setup_context=remember)
    return operator


_divergence = _register(
    "divergence", _run_divergence, _like_divergence, "Tensor student_logits, Tensor teacher_logits", _ROWS, 1
)
_linear = _register(
    "linear_divergence", _run_linear, _like_linear, f"{_STUDENT}, {_LORA}, {_TEACHER}", f"{_ROWS}, {_PRODUCTS}", 5
)
_sparse = _register(
    "linear_sparse_divergence", _run_sparse, _like_linear, f"{_STUDENT}, {_LORA}, {_SPARSE}", f"{_ROWS}, {_PRODUCTS}", 5
)
