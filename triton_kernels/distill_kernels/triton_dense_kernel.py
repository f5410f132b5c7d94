"""One row, or a segment of one, of student logits against a teacher's: two or three passes.

    pass 1   top and total of both softmaxes; for the KLs also sum e (log e - log e'), so their loss is known
    pass 2   the two sums of a mixture's divergence; the KLs do without
    pass 3   the gradient, if wanted

A logit's bytes, 16 bits each: the KLs 4, with gradient 10; the others 8, with gradient 14. Passes alternate their
direction, so that the end of one is still in L2 when the next begins there. No atomics: a row's sums have one order.

PHASE "whole": one program does all of it for a row. Where rows are few, `splits` programs share one, and each pass is a
launch: "statistics", "sums" and "gradient". A program leaves what it found in `partials` `[rows, splits, PARTIALS]`;
the next launch's programs all combine them, in the same order. Where a vocabulary lies over several processes, each
has its own segment of every row: its programs are numbers `first_split` and following of the row's `splits`, and what
the others left in `partials` is brought there between the launches.
"""
# Triton's language looks like Python and has other types.
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from distill_kernels.triton_dense_row import kl_sums, logit_at, logit_gradient, probabilities, row_loss
from distill_kernels.triton_forms import kl_terms, mixture_loss, mixture_sums, mixture_terms
from distill_kernels.triton_softmax import (
    EMPTY,
    capped,
    combined,
    drift,
    is_whole,
    online,
    row_shift,
    row_start,
    tile_positions,
    token_offsets,
    within,
)

PARTIALS = 16
"""Floats of one program: six statistics, two sums, the label's logit; the rest keeps them apart."""
LABEL_LOGIT = 8
"""Which of them is the label's logit."""
_PARTIALS = tl.constexpr(PARTIALS)
_LABEL_LOGIT = tl.constexpr(LABEL_LOGIT)


@triton.jit
def dense_kernel(
    student,
    teacher,
    gradient,
    loss,
    partials,
    labels,
    row_weights,
    student_stride,
    teacher_stride,
    gradient_stride,
    student_token,
    teacher_token,
    gradient_token,
    num_tokens,
    student_factor,
    teacher_factor,
    student_k,
    teacher_k,
    hard_k,
    weight,
    loss_scale,
    hard_weight,
    gradient_scale,
    hard_scale,
    ignore_index,
    splits,
    first_split,
    segment_tiles,
    PHASE: tl.constexpr,
    LANES: tl.constexpr,
    KIND: tl.constexpr,
    IGNORES: tl.constexpr,
    HARD: tl.constexpr,
    UNIT_TEMPERATURE: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    ADDRESS: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its loss, and its gradient where `gradient` is not None. `gradient` may be `student`."""
    row = tl.program_id(0).to(tl.int64)
    label = 0
    if IGNORES or HARD:
        label = tl.load(labels + row)
    if IGNORES and label == ignore_index:
        tl.store(loss + row, 0.0)
        return
    begin = row_shift(student, row, student_stride, ADDRESS)
    end = begin + num_tokens
    first_tile, last_tile = 0, end
    partial = partials
    if PHASE != "whole":
        first_tile = tl.program_id(1) * segment_tiles * BLOCK
        last_tile = tl.minimum(first_tile + segment_tiles * BLOCK, end)
        partial = partials + (row * splits + first_split + tl.program_id(1)) * _PARTIALS
    pair = (
        row_start(student, row, student_stride, ADDRESS),
        row_start(teacher, row, teacher_stride, ADDRESS),
        student_token,
        teacher_token,
        student_factor,
        teacher_factor,
    )
    label_logit = 0.0
    if PHASE == "whole" or PHASE == "statistics":
        if HARD:  # now, for the gradient may be written over it
            label_logit = logit_at(
                begin + label, pair[0], student_token, student_factor, begin, end, STUDENT_CAPPED, CONTIGUOUS
            )
            if PHASE == "statistics":
                tl.store(partial + _LABEL_LOGIT, label_logit)
        statistics = _statistics(
            pair, begin, end, first_tile, last_tile, student_k, teacher_k, hard_k,
            KIND, HARD and not UNIT_TEMPERATURE, STUDENT_CAPPED, TEACHER_CAPPED, CONTIGUOUS, BLOCK,
        )  # fmt: skip
        statistics = _together(statistics, student_k, teacher_k, hard_k, KIND)
    if PHASE == "statistics":
        for index in tl.static_range(6):
            tl.store(partial + index, statistics[index])
        return
    if PHASE == "sums" or PHASE == "gradient":
        found = partials + row * splits * _PARTIALS
        if HARD:
            label_logit = tl.load(found + _LABEL_LOGIT)
        statistics = _together(_loaded(found, splits, LANES), student_k, teacher_k, hard_k, KIND)
    top, total, teacher_top, teacher_total, cross, hard_total = statistics
    if HARD and UNIT_TEMPERATURE:
        hard_total = total

    softmaxes = (top, 1.0 / total, teacher_top, 1.0 / teacher_total)
    first, second = 0.0, 0.0
    if KIND == "forward_kl" or KIND == "reverse_kl":
        first, second = kl_sums(cross, total, teacher_total, KIND)
        divergence = first
    else:
        if PHASE == "whole" or PHASE == "sums":
            first, second = _mixture_sums(
                pair, begin, end, first_tile, last_tile, softmaxes, student_k, teacher_k, weight,
                KIND, STUDENT_CAPPED, TEACHER_CAPPED, CONTIGUOUS, BLOCK,
            )  # fmt: skip
        if PHASE == "sums":
            tl.store(partial + 6, first)
            tl.store(partial + 7, second)
            return
        if PHASE == "gradient":
            lane = tl.arange(0, LANES)
            sums = partials + row * splits * _PARTIALS + lane * _PARTIALS
            first = tl.sum(tl.load(sums + 6, mask=lane < splits, other=0.0), 0)
            second = tl.sum(tl.load(sums + 7, mask=lane < splits, other=0.0), 0)
        divergence = mixture_loss(first, second, weight, KIND)

    statistics = (top, total, teacher_top, teacher_total, hard_total)
    result = row_loss(divergence, statistics, label_logit, hard_k, loss_scale, hard_weight, HARD)
    row_weight = 1.0
    if row_weights is not None:
        row_weight = tl.load(row_weights + row)
        result *= row_weight
    tl.store(loss + row, result, mask=tl.program_id(1) == 0)

    if gradient is not None:
        _write_gradient(
            row_start(gradient, row, gradient_stride, ADDRESS), gradient_token, pair, begin, end, first_tile, last_tile,
            softmaxes, first, second, begin + label, 1.0 / hard_total, student_k, teacher_k, hard_k, weight,
            gradient_scale, hard_scale, row_weight,
            KIND, HARD, UNIT_TEMPERATURE, STUDENT_CAPPED, TEACHER_CAPPED, CONTIGUOUS, BLOCK,
        )  # fmt: skip


@triton.jit
def _loaded(found, splits, LANES: tl.constexpr):
    """The statistics of a row's programs, `[LANES]` each; a lane that is none of them has seen nothing."""
    lane = tl.arange(0, LANES)
    at, known = found + lane * _PARTIALS, lane < splits
    student_top = tl.load(at, mask=known, other=EMPTY)
    student_total = tl.load(at + 1, mask=known, other=0.0)
    teacher_top = tl.load(at + 2, mask=known, other=EMPTY)
    teacher_total = tl.load(at + 3, mask=known, other=0.0)
    cross = tl.load(at + 4, mask=known, other=0.0)
    hard_total = tl.load(at + 5, mask=known, other=0.0)
    return student_top, student_total, teacher_top, teacher_total, cross, hard_total


@triton.jit
def _load_pair(
    pair,
    start,
    begin,
    end,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of both rows in float32, capped but not scaled; -inf outside the row."""
    student_row, teacher_row, student_token, teacher_token, student_factor, teacher_factor = pair
    positions = tile_positions(start, BLOCK)
    student_at = student_row + token_offsets(positions, student_token, CONTIGUOUS)
    teacher_at = teacher_row + token_offsets(positions, teacher_token, CONTIGUOUS)
    if is_whole(start, begin, end, BLOCK):
        student = tl.load(student_at).to(tl.float32)
        teacher = tl.load(teacher_at).to(tl.float32)
    else:
        inside = within(positions, begin, end)
        student = tl.load(student_at, mask=inside, other=EMPTY).to(tl.float32)
        teacher = tl.load(teacher_at, mask=inside, other=EMPTY).to(tl.float32)
    student = capped(student, positions, begin, end, student_factor, STUDENT_CAPPED)
    teacher = capped(teacher, positions, begin, end, teacher_factor, TEACHER_CAPPED)
    return positions, student, teacher


@triton.jit
def _statistics(
    pair,
    begin,
    end,
    first_tile,
    last_tile,
    student_k,
    teacher_k,
    hard_k,
    KIND: tl.constexpr,
    HARD: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pass 1, by groups of eight: top and total of both softmaxes, the KL's cross sum in bits, the hard total."""
    student_top = tl.full([BLOCK // 8], EMPTY, tl.float32)
    student_total = tl.zeros([BLOCK // 8], tl.float32)
    teacher_top, teacher_total = student_top, student_total
    cross, hard_total = student_total, student_total
    for start in range(first_tile, last_tile, BLOCK):
        _, student, teacher = _load_pair(pair, start, begin, end, STUDENT_CAPPED, TEACHER_CAPPED, CONTIGUOUS, BLOCK)
        if HARD:
            _, _, hard_exp, hard_fade = online(student_top, student, hard_k)
            hard_total = hard_total * hard_fade + tl.sum(hard_exp, 1)
        student_new, student_log, student_exp, student_fade = online(student_top, student, student_k)
        teacher_new, teacher_log, teacher_exp, teacher_fade = online(teacher_top, teacher, teacher_k)
        student_drift = drift(student_top, student_new, student_k)
        teacher_drift = drift(teacher_top, teacher_new, teacher_k)
        if KIND == "forward_kl":
            moved = teacher_fade * (cross + teacher_total * (teacher_drift - student_drift))
            terms = kl_terms(student_log, student_exp, teacher_log, teacher_exp, KIND)
            cross = tl.where(teacher_fade > 0, moved, 0.0) + tl.sum(terms, 1)
        if KIND == "reverse_kl":
            moved = student_fade * (cross + student_total * (student_drift - teacher_drift))
            terms = kl_terms(student_log, student_exp, teacher_log, teacher_exp, KIND)
            cross = tl.where(student_fade > 0, moved, 0.0) + tl.sum(terms, 1)
        student_total = student_total * student_fade + tl.sum(student_exp, 1)
        teacher_total = teacher_total * teacher_fade + tl.sum(teacher_exp, 1)
        student_top, teacher_top = student_new, teacher_new
    return student_top, student_total, teacher_top, teacher_total, cross, hard_total


@triton.jit
def _together(statistics, student_k, teacher_k, hard_k, KIND: tl.constexpr):
    """Statistics of groups, or of a row's programs, as one."""
    student_top, student_total, teacher_top, teacher_total, cross, hard_total = statistics
    top, fade = combined(student_top, student_k)
    other_top, other_fade = combined(teacher_top, teacher_k)
    _, hard_fade = combined(student_top, hard_k)
    apart = drift(teacher_top, other_top, teacher_k) - drift(student_top, top, student_k)
    if KIND == "forward_kl":
        cross = tl.where(other_fade > 0, other_fade * (cross + teacher_total * apart), 0.0)
    if KIND == "reverse_kl":
        cross = tl.where(fade > 0, fade * (cross - student_total * apart), 0.0)
    total, other_total = tl.sum(student_total * fade, 0), tl.sum(teacher_total * other_fade, 0)
    return top, total, other_top, other_total, tl.sum(cross, 0), tl.sum(hard_total * hard_fade, 0)


@triton.jit
def _mixture_sums(
    pair,
    begin,
    end,
    first_tile,
    last_tile,
    softmaxes,
    student_k,
    teacher_k,
    weight,
    KIND: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pass 2, from the row's end to its start: `mixture_sums`."""
    first = tl.zeros([BLOCK // 8], tl.float32)
    second = tl.zeros([BLOCK // 8], tl.float32)
    mirror = first_tile + (last_tile - 1) // BLOCK * BLOCK
    for step in range(first_tile, last_tile, BLOCK):
        _, student, teacher = _load_pair(
            pair, mirror - step, begin, end, STUDENT_CAPPED, TEACHER_CAPPED, CONTIGUOUS, BLOCK
        )
        q, p, _, _ = probabilities(student, teacher, softmaxes, student_k, teacher_k)
        one, other = mixture_terms(q, p, weight, KIND)
        first += tl.sum(one, 1)
        second += tl.sum(other, 1)
    return mixture_sums(tl.sum(first, 0), tl.sum(second, 0), KIND)


@triton.jit
def _write_gradient(
    gradient_row,
    gradient_token,
    pair,
    begin,
    end,
    first_tile,
    last_tile,
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
    TEACHER_CAPPED: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The last pass; `first` and `second` as `triton_dense_row` has them."""
    REVERSED: tl.constexpr = KIND == "forward_kl" or KIND == "reverse_kl"
    mirror = first_tile + (last_tile - 1) // BLOCK * BLOCK
    for step in range(first_tile, last_tile, BLOCK):
        start = mirror - step if REVERSED else step
        positions, student, teacher = _load_pair(
            pair, start, begin, end, STUDENT_CAPPED, TEACHER_CAPPED, CONTIGUOUS, BLOCK
        )
        result = logit_gradient(
            positions, student, teacher, softmaxes, first, second, label_position, hard_inverse,
            student_k, teacher_k, hard_k, weight, gradient_scale, hard_scale, row_weight,
            KIND, HARD, UNIT_TEMPERATURE, STUDENT_CAPPED,
        )  # fmt: skip
        result = result.to(gradient_row.dtype.element_ty)
        gradient_at = gradient_row + token_offsets(positions, gradient_token, CONTIGUOUS)
        if is_whole(start, begin, end, BLOCK):
            tl.store(gradient_at, result)
        else:
            tl.store(gradient_at, result, mask=within(positions, begin, end))
