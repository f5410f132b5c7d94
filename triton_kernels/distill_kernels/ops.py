"""The public ops: the divergence between a teacher's and a student's next-token distributions.

All of them compute, for each row (a token's position),

    (1 - hard_weight) * temperature² * D(p, q) + hard_weight * CE(label, student at temperature 1)

times the row's `row_weight`, in nats. p is the teacher and q the student: softmaxes over the prefix that the two
vocabularies share, of `softcap * tanh(scale * logit / softcap) / temperature`. `kind` names D:

    forward_kl        KL(p || q), the teacher's entropy included
    reverse_kl        KL(q || p)
    jsd               beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q
    skew_forward_kl   KL(p || alpha p + (1 - alpha) q)
    skew_reverse_kl   KL(q || (1 - alpha) p + alpha q)
    tvd               half the sum of |p - q|

Options that all share:
    beta, alpha: of jsd and of the skewed divergences, between 0 and 1.
    temperature: of both distributions in D; the result carries temperature², so gradients keep their size.
    labels: int `[...]`. Rows whose label is `ignore_index` count zero and cost nothing (their products, while a CUDA
        graph is captured). Absent: every row counts.
    hard_weight: the label's part, 0 to 1. Needs labels, each inside the shared vocabulary.
    row_weight: float `[...]`, no gradient.
    student_scale, student_softcap, teacher_scale, teacher_softcap: of the raw logits, in this order (None: no cap).
    reduction: "sum" gives a scalar, "none" the rows `[...]`. Nothing is averaged: the trainer knows the global count.

float32 statistics and results for 16- and 32-bit inputs, float64 for float64 inputs. The gradient goes to the student
alone, is taken in the precision of its products, honours any incoming gradient and may be taken twice with
retain_graph. No rows, or none that counts, give 0 that is attached to the graph. A row with NaN gives NaN in its own
loss only.

ValueError or TypeError: an argument is wrong; the message names it, what was found and what is needed.
"""

import torch
from torch import Tensor

from distill_kernels import library
from distill_kernels.autograd import evaluate_with_gradient
from distill_kernels.calls import divergence_call, linear_call, sparse_call
from distill_kernels.eager import LinearCall
from distill_kernels.parallel import Local, localised, refuse_dtensors
from distill_kernels.student import LowRankHead, Student


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    kind: str,
    *,
    beta: float = 0.5,
    alpha: float = 0.1,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    student_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: float | None = None,
    reduction: str = "sum",
) -> Tensor:
    """The divergence in nats of logits that exist already; `[..., V_s]` and `[..., V_t]`, any strides, no copies.

    With a gradient, one more tensor like `student_logits` is kept until backward.
    """
    options = {
        "kind": kind,
        "beta": beta,
        "alpha": alpha,
        "temperature": temperature,
        "hard_weight": hard_weight,
        "student_scale": student_scale,
        "student_softcap": student_softcap,
        "teacher_scale": teacher_scale,
        "teacher_softcap": teacher_softcap,
    }
    refuse_dtensors("student_logits, teacher_logits", student_logits, teacher_logits, labels, row_weight)
    rest = (labels, row_weight, ignore_index, reduction)
    if torch.compiler.is_compiling():
        return library.divergence(student_logits, teacher_logits, *rest, options)
    call = divergence_call(student_logits, teacher_logits, *rest, options)
    loss = evaluate_with_gradient(call, reduction, [student_logits])
    return loss if reduction == "sum" else loss.view(student_logits.shape[:-1])


def linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor | LowRankHead,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    kind: str,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    logits_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    beta: float = 0.5,
    alpha: float = 0.1,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    student_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: float | None = None,
    reduction: str = "sum",
) -> Tensor:
    """The divergence in nats from hidden states and heads; the logits exist for one chunk of rows at a time.

    Args:
        student_hidden, teacher_hidden: `[..., H_s]` and `[..., H_t]`, the same leading shape.
        student_head, teacher_head: `[V_s, H_s]` and `[V_t, H_t]`, as in `nn.Linear`. The student's may be a
            `LowRankHead`: a frozen weight with a LoRA update, whose two factors alone get gradients. Both may be
            DTensors cut over their rows: with plain hidden states they are gathered, and a gradient is the sum over
            the processes; with replicated hidden states the vocabulary stays cut, and the result is replicated.
        student_bias, teacher_bias: `[V_s]` and `[V_t]`, or None.
        logits_dtype: None takes 16-bit inputs' products in 16 bits; their logits are float32 on a GPU and have 8 or 11
            bits on a CPU. torch.float32 casts the heads first and takes every product in float32.
        chunk_bytes: memory for logits. None: 32 MiB and at most 1024 rows on a CPU, 2 GiB elsewhere.

    With reduction="sum" the gradients are taken here, so nothing is projected twice: the head's is a float32
    `[V_s, H_s]`, kept until backward (a bfloat16 head's in bfloat16, where at most 2 H_s rows count: their gradient by
    the logits, `[N, V]`, is kept for one product then), and none is made for a frozen head. With "none" backward
    projects again.
    """
    options = {
        "kind": kind,
        "beta": beta,
        "alpha": alpha,
        "temperature": temperature,
        "hard_weight": hard_weight,
        "student_scale": student_scale,
        "student_softcap": student_softcap,
        "teacher_scale": teacher_scale,
        "teacher_softcap": teacher_softcap,
    }
    student = Student.of(student_hidden, student_head, student_bias)
    teacher = (teacher_hidden, teacher_head, teacher_bias)
    local = localised(student, teacher, {"labels": labels, "row_weight": row_weight})
    assert local.teacher is not None
    labels, row_weight = local.rows.values()
    rest = (labels, row_weight, ignore_index, reduction, logits_dtype, chunk_bytes, options)
    if torch.compiler.is_compiling():
        return library.linear_divergence(local.student, local.teacher, *rest)
    return _linear(linear_call(local.student, local.teacher, *rest, local.columns), reduction, local)


def linear_sparse_divergence(
    student_hidden: Tensor,
    student_head: Tensor | LowRankHead,
    token_ids: Tensor,
    values: Tensor | float,
    kind: str = "forward_kl",
    *,
    tail: str = "bucket",
    student_bias: Tensor | None = None,
    logits_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    beta: float = 0.5,
    alpha: float = 0.1,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    student_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: float | None = None,
    reduction: str = "sum",
) -> Tensor:
    """The divergence in nats from a teacher of K token ids per row; otherwise as `linear_divergence`.

    Args:
        token_ids: int32 or int64 `[..., K]`, -1 pads, unique within a row. Rows that do not count may hold anything.
        values: float `[..., K]`, or one number for all. The teacher's log-probabilities over the whole vocabulary, at
            `temperature` and after its scale and cap: a top-k cannot be re-tempered here. For "sampled": weights.
        tail: what the probability off the ids is taken for.
            "bucket": one token of its own; any kind. A lower bound of the full divergence, exact once K >= V - 1.
            Its probability is what the ids leave over; `values` of `[..., K + 1]` tell its logarithm last, for below
            1e-7 float32 has no digits of what is left over.
            "zero": nothing. "renormalize": the ids' probabilities are divided by their sum.
            "uniform": spread evenly over the other tokens. These three for forward_kl only.
            "sampled": the ids are samples and the values weights w >= 0, not normalised; forward_kl only. D is
            -sum w ln q, to which the caller adds the teacher's entropy if wanted; repeated ids add up.

    Cross-entropy with text alone: `token_ids=labels[:, None], values=1.0, tail="sampled", labels=labels`.
    """
    options = {
        "kind": kind,
        "beta": beta,
        "alpha": alpha,
        "temperature": temperature,
        "hard_weight": hard_weight,
        "student_scale": student_scale,
        "student_softcap": student_softcap,
        "teacher_scale": teacher_scale,
        "teacher_softcap": teacher_softcap,
    }
    student = Student.of(student_hidden, student_head, student_bias)
    rows = {"token_ids": token_ids, "values": values, "labels": labels, "row_weight": row_weight}
    local = localised(student, None, rows)
    token_ids, values, labels, row_weight = local.rows.values()
    rest = (labels, row_weight, ignore_index, reduction, logits_dtype, chunk_bytes, options)
    if torch.compiler.is_compiling():
        return library.linear_sparse_divergence(local.student, token_ids, values, tail, *rest)
    call = sparse_call(local.student, token_ids, values, tail, *rest, local.columns)
    return _linear(call, reduction, local)


def _linear(call: LinearCall, reduction: str, local: Local) -> Tensor:
    loss = evaluate_with_gradient(call, reduction, local.student.flat_tensors)
    return local.result(loss if reduction == "sum" else loss.view(local.student.hidden.shape[:-1]))
