"""From the arguments of a public op to the call that evaluates it: everything that can be refused is refused here.

`options` are those of `settings.Settings`, by name.
"""

from typing import Any

import torch
from torch import Tensor

from distill_kernels import arguments
from distill_kernels.columns import WHOLE, Columns, Cut, Whole
from distill_kernels.eager import LinearCall, SparseTeacher
from distill_kernels.materialised import LogitsCall
from distill_kernels.projection import Projection
from distill_kernels.student import Student

Teacher = tuple[Tensor, Tensor, Tensor | None]
"""Hidden states, head and bias."""


def divergence_call(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    row_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    options: dict[str, Any],
) -> LogitsCall:
    """`divergence` with all it needs but the student's logits."""
    arguments.floating("student_logits", student_logits)
    arguments.floating("teacher_logits", teacher_logits)
    leading, device = student_logits.shape[:-1], student_logits.device
    arguments.same("teacher_logits.shape[:-1]", teacher_logits.shape[:-1], "student_logits", leading)
    arguments.same("teacher_logits.device", teacher_logits.device, "student_logits", device)
    arguments.one_of("reduction", reduction, ("sum", "none"))
    settings = arguments.check_settings(options)
    num_tokens = min(student_logits.shape[-1], teacher_logits.shape[-1])
    arguments.at_least_one_token(num_tokens)
    hard_weight = settings.hard_weight
    rows = arguments.check_rows(leading, device, num_tokens, labels, ignore_index, row_weight, hard_weight)
    return LogitsCall(settings=settings, rows=rows, teacher_logits=teacher_logits, num_tokens=num_tokens)


def linear_call(
    student: Student,
    teacher: Teacher,
    labels: Tensor | None,
    row_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    logits_dtype: torch.dtype | None,
    chunk_bytes: int | None,
    options: dict[str, Any],
    columns: Columns = WHOLE,
) -> LinearCall:
    """`linear_divergence` with all it needs but the student; the teacher as hidden states, head and bias.

    With a `Cut`, heads and biases are the parts of this process, the teacher's of the same tokens as the student's.
    """
    if isinstance(columns, Whole):  # parts were checked while they were whole, see parallel.py
        arguments.check_student(student)
        arguments.check_projection("teacher", *teacher)
    teacher_hidden, teacher_head, teacher_bias = teacher
    leading, device = student.hidden.shape[:-1], student.hidden.device
    arguments.same("teacher_hidden.shape[:-1]", teacher_hidden.shape[:-1], "student_hidden", leading)
    arguments.same("teacher_hidden.device", teacher_hidden.device, "student_hidden", device)
    arguments.one_of("reduction", reduction, ("sum", "none"))
    settings = arguments.check_settings(options)
    num_tokens, num_here = _extent(columns, min(student.head.shape[0], teacher_head.shape[0]))
    hard_weight = settings.hard_weight
    rows = arguments.check_rows(leading, device, num_tokens, labels, ignore_index, row_weight, hard_weight)
    projection = Projection(
        hidden_NH=teacher_hidden.reshape(rows.num_rows, teacher_hidden.shape[-1]),
        head_VH=teacher_head,
        bias_V=teacher_bias,
        product_dtype=arguments.product_dtype("teacher", teacher_hidden, teacher_head, logits_dtype),
    )
    return LinearCall(
        settings=settings,
        rows=rows,
        teacher=projection,
        product_dtype=arguments.product_dtype("student", student.hidden, student.head, logits_dtype),
        device=device,
        num_tokens=num_here,
        columns=columns,
        chunk_bytes=arguments.check_chunk_bytes(chunk_bytes),
        lora_scale=student.lora_scale,
    )


def sparse_call(
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
    columns: Columns = WHOLE,
) -> LinearCall:
    """`linear_sparse_divergence` with all it needs but the student; `columns` as for `linear_call`."""
    if isinstance(columns, Whole):
        arguments.check_student(student)
    leading, device = student.hidden.shape[:-1], student.hidden.device
    arguments.one_of("reduction", reduction, ("sum", "none"))
    settings = arguments.check_settings(options)
    if settings.teacher_scale != 1 or settings.teacher_softcap is not None:
        raise ValueError(
            f"teacher_scale, teacher_softcap: found {settings.teacher_scale}, {settings.teacher_softcap}; needed 1.0, "
            f"None, for the values are log-probabilities or weights already."
        )
    num_tokens, num_here = _extent(columns, student.head.shape[0])
    hard_weight = settings.hard_weight
    rows = arguments.check_rows(leading, device, num_tokens, labels, ignore_index, row_weight, hard_weight)
    checked = arguments.check_sparse(token_ids, values, tail, settings.kind, leading, num_tokens, rows)
    arguments.same("token_ids.device", token_ids.device, "student_hidden", device)
    # "bucket" finds them by itself while it adds up the rest; but not one process alone
    if tail != "sampled" and (tail != "bucket" or isinstance(columns, Cut)):
        arguments.check_unique_ids(checked[0], rows)
    return LinearCall(
        settings=settings,
        rows=rows,
        teacher=SparseTeacher(token_ids_NK=checked[0], values=checked[1], tail=tail),
        product_dtype=arguments.product_dtype("student", student.hidden, student.head, logits_dtype),
        device=device,
        num_tokens=num_here,
        columns=columns,
        chunk_bytes=arguments.check_chunk_bytes(chunk_bytes),
        lora_scale=student.lora_scale,
    )


def _extent(columns: Columns, num_tokens: int) -> tuple[int, int]:
    """Tokens of the shared vocabulary, and how many of them are held here."""
    return (columns.num_tokens, columns.here) if isinstance(columns, Cut) else (num_tokens, num_tokens)
