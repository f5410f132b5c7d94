"""What the dense kernels have in common: a row's loss from its sums, and the gradient of a tile.

`softmaxes` are the student's top and inverse total and the teacher's, as `triton_softmax` keeps them. `first` and
`second` are the mixture's sums; of a KL its value and ln(teacher's total / student's total).
"""

# Triton's language looks like Python and has other types.
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl

from distill_kernels.triton_forms import kl_gradient, mixture_gradient
from distill_kernels.triton_softmax import EMPTY, LN2, capped, token_offsets, within


@triton.jit
def logit_at(position, row, stride, factor, begin, end, CAPPED: tl.constexpr, CONTIGUOUS: tl.constexpr):
    """The student's logit at a label, capped but not scaled; NaN if it is no token of the vocabulary."""
    positions = tl.full([1], position, tl.int64)
    known = within(positions, begin, end)
    logit = tl.load(row + token_offsets(positions, stride, CONTIGUOUS), mask=known, other=EMPTY)
    logit = capped(logit.to(tl.float32), positions, begin, end, factor, CAPPED)
    return tl.sum(tl.where(known, logit, float("nan")), 0)


@triton.jit
def probabilities(student, teacher, softmaxes, student_k, teacher_k):
    """q and p of capped logits, and what was exponentiated: shifted logits in bits."""
    student_top, student_inverse, teacher_top, teacher_inverse = softmaxes
    student_log = (student - student_top) * student_k
    teacher_log = (teacher - teacher_top) * teacher_k
    return tl.exp2(student_log) * student_inverse, tl.exp2(teacher_log) * teacher_inverse, student_log, teacher_log


@triton.jit
def kl_sums(cross, total, teacher_total, KIND: tl.constexpr):
    """A KL in nats from its cross sum in bits, and the logarithm that its gradient needs."""
    log_ratio = tl.log(teacher_total / total)
    if KIND == "forward_kl":
        return cross / teacher_total * LN2 - log_ratio, log_ratio
    else:
        return cross / total * LN2 + log_ratio, log_ratio


@triton.jit
def row_loss(divergence, statistics, label_logit, hard_k, loss_scale, hard_weight, HARD: tl.constexpr):
    """The loss of a row before its weight."""
    top, total, teacher_top, teacher_total, hard_total = statistics
    # a row of nothing but -inf, one with +inf, and one with NaN have no softmax
    divergence += 0.0 * top + 0.0 * teacher_top + 0.0 * total + 0.0 * teacher_total
    result = loss_scale * divergence
    if HARD:
        result += hard_weight * (tl.log(hard_total) - (label_logit - top) * hard_k * LN2)
    return result


@triton.jit
def logit_gradient(
    positions,
    student,
    teacher,
    softmaxes,
    first,
    second,
    label_position,
    hard_inverse,
    student_k,
    teacher_k,
    hard_k,
    weight,
    gradient_scale,
    hard_scale,
    row_weight,
    KIND: tl.constexpr,
    HARD: tl.constexpr,
    UNIT_TEMPERATURE: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
):
    """The derivative by raw student logits, from capped ones."""
    q, p, student_log, teacher_log = probabilities(student, teacher, softmaxes, student_k, teacher_k)
    if KIND == "forward_kl" or KIND == "reverse_kl":
        by_softmax = kl_gradient(q, p, (student_log - teacher_log) * LN2 + second, first, KIND)
    else:
        by_softmax = mixture_gradient(q, p, first, second, weight, KIND)
    result = gradient_scale * by_softmax
    if HARD:
        hard_q = q if UNIT_TEMPERATURE else tl.exp2((student - softmaxes[0]) * hard_k) * hard_inverse
        result += hard_scale * tl.where(positions == label_position, hard_q - 1.0, hard_q)
    result *= row_weight
    if STUDENT_CAPPED:
        result *= 1.0 - student * student
    return result
