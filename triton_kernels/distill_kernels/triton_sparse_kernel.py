"""One row of student logits against K token ids: two passes.

    first    the K logits go to registers; for the tails "bucket" and "uniform" NaN is written in their place
    pass 1   top and total of the softmax; for these two tails of the other tokens alone
    pass 2   the gradient, if wanted: a multiple of the others' softmax, then the K exact values over it

A logit's bytes, 16 bits each: 2, with gradient 6. The row must be the caller's to write to, with or without a gradient:
that is how the rest's probability is a sum over the other tokens, for one comparison each, and not 1 - sum q_k, which
has no digits left once the student is sure. Where ids repeat there are fewer marks than ids, where a logit is NaN more:
both give NaN in that row, and so does an id or a label that is no token of the vocabulary.

V vocabulary, K ids per row (-1 pads), one lane each; the lane after the last is the bucket of the rest.
"""
# Triton's language looks like Python and has other types.
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from distill_kernels.triton_forms import kl_gradient, mixture_gradient, mixture_loss, mixture_sums, mixture_terms
from distill_kernels.triton_softmax import (
    EMPTY,
    LN2,
    above_empty,
    capped,
    combined,
    drift,
    is_whole,
    online,
    row_shift,
    row_start,
    tile_positions,
    within,
)

_SMALLEST = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def sparse_kernel(
    student,
    gradient,
    token_ids,
    values,
    loss,
    labels,
    row_weights,
    student_stride,
    gradient_stride,
    ids_stride,
    id_stride,
    values_stride,
    value_stride,
    num_tokens,
    num_ids,
    student_factor,
    student_k,
    hard_k,
    weight,
    loss_scale,
    hard_weight,
    gradient_scale,
    hard_scale,
    KIND: tl.constexpr,
    TAIL: tl.constexpr,
    REST_TOLD: tl.constexpr,
    HARD: tl.constexpr,
    CAPPED: tl.constexpr,
    ADDRESS: tl.constexpr,
    BLOCK: tl.constexpr,
    IDS: tl.constexpr,
):
    """One row: its loss, and its gradient where `gradient` is not None. `gradient` may be `student`."""
    MARKED: tl.constexpr = TAIL == "bucket" or TAIL == "uniform"
    row = tl.program_id(0).to(tl.int64)
    begin = row_shift(student, row, student_stride, ADDRESS)
    end = begin + num_tokens
    student_row = row_start(student, row, student_stride, ADDRESS)

    lane = tl.arange(0, IDS)
    ids_at, values_at = token_ids + row * ids_stride, values + row * values_stride
    ids = tl.load(ids_at + lane * id_stride, mask=lane < num_ids, other=-1)
    ids = tl.minimum(tl.maximum(ids, -2), num_tokens).to(tl.int32)  # cut as it is, 2**32 + 2 would be token 2
    present = (ids >= 0) & (ids < num_tokens)
    num_strange = tl.sum(((ids >= num_tokens) | (ids < -1)).to(tl.int32), 0)
    kept_at = begin + tl.where(present, ids, 0)
    num_present = tl.sum(present.to(tl.int32), 0)
    kept = tl.load(student_row + kept_at, mask=present, other=EMPTY).to(tl.float32)
    kept = tl.where(present, capped(kept, kept_at, begin, end, student_factor, CAPPED), EMPTY)
    label_position, label_logit = begin, 0.0
    if HARD:
        label_position = begin + tl.minimum(tl.maximum(tl.load(labels + row), -1), num_tokens).to(tl.int32)
        at = tl.full([1], label_position, tl.int32)
        known = within(at, begin, end)
        label_logit = tl.load(student_row + at, mask=known, other=EMPTY).to(tl.float32)
        label_logit = capped(label_logit, at, begin, end, student_factor, CAPPED)
        label_logit = tl.sum(tl.where(known, label_logit, float("nan")), 0)
    if MARKED:
        tl.debug_barrier()  # every thread has read what it needs
        mark = tl.full([IDS], float("nan"), tl.float32).to(student.dtype.element_ty)
        tl.store(student_row + kept_at, mark, mask=present)
        tl.debug_barrier()

    others_top, others_total, others_hard, others_sum, num_marks = _others(
        student_row, begin, end, student_factor, student_k, hard_k, TAIL, HARD, CAPPED, BLOCK
    )
    top, total, hard_total = others_top, others_total, others_hard
    if MARKED:
        top = tl.maximum(others_top, tl.max(kept, 0))
        fade = tl.exp2((others_top - above_empty(top)) * student_k)
        total = others_total * fade + tl.sum(tl.exp2((kept - above_empty(top)) * student_k), 0)
        hard_fade = tl.exp2((others_top - above_empty(top)) * hard_k)
        hard_total = others_hard * hard_fade + tl.sum(tl.exp2((kept - above_empty(top)) * hard_k), 0)
        total = tl.where(num_marks == num_present, total, float("nan"))
    total = tl.where(num_strange == 0, total, float("nan"))
    log_total = tl.log(total)
    log_q = tl.where(present, (kept - top) * student_k * LN2 - log_total, 0.0)
    q = tl.where(present, tl.exp2((kept - top) * student_k) / total, 0.0)
    num_others = (num_tokens - num_present).to(tl.float32)

    is_rest = lane == tl.where(num_present < num_tokens, num_ids, -1)
    told = present
    if REST_TOLD:
        told = present | is_rest
    # loaded only now: in registers during pass 1 they would be spilled
    given = tl.load(values_at + lane * value_stride, mask=told, other=0.0).to(tl.float32)
    mass, log_p = _teacher(given, told, TAIL)
    if TAIL == "bucket":
        divergence, by_kept, by_rest = _bucket(
            q, mass, log_q, log_p, is_rest, others_top, others_total, top, total, student_k, weight, REST_TOLD, KIND
        )
        slope, constant = by_rest, 0.0
    else:
        divergence, by_kept, slope, constant = _linear(
            q,
            mass,
            log_q,
            log_p,
            others_total,
            others_sum,
            others_top,
            top,
            total,
            num_others,
            student_k,
            TAIL,
        )

    divergence += 0.0 * top + 0.0 * total  # no softmax, or ids that repeat: NaN
    row_loss = loss_scale * divergence
    row_weight = 1.0
    if HARD:
        row_loss += hard_weight * (tl.log(hard_total) - (label_logit - top) * hard_k * LN2)
    if row_weights is not None:
        row_weight = tl.load(row_weights + row)
        row_loss *= row_weight
    tl.store(loss + row, row_loss)

    if gradient is not None:
        gradient_row = row_start(gradient, row, gradient_stride, ADDRESS)
        _write_others(
            student_row, gradient_row, begin, end, others_top, slope / tl.maximum(others_total, _SMALLEST), constant,
            label_position, top, 1.0 / hard_total, student_factor, student_k, hard_k, gradient_scale, hard_scale,
            row_weight, HARD, CAPPED, BLOCK,
        )  # fmt: skip
        result = by_kept
        if TAIL == "sampled":
            result = slope * q - _added_up(ids, ids_at, values_at, id_stride, value_stride, num_ids, IDS)
        result *= gradient_scale
        if HARD:
            hard_q = tl.exp2((kept - top) * hard_k) / hard_total
            result += hard_scale * tl.where(kept_at == label_position, hard_q - 1.0, hard_q)
        result *= row_weight
        if CAPPED:
            result *= 1.0 - kept * kept
        tl.debug_barrier()  # what was written for the others is complete
        tl.store(gradient_row + kept_at, result.to(gradient.dtype.element_ty), mask=present)


@triton.jit
def _load(row, start, begin, end, factor, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    """One tile in float32, capped but not scaled; -inf outside the row and at marks. Which positions are marks."""
    positions = tile_positions(start, BLOCK)
    if is_whole(start, begin, end, BLOCK):
        logits = tl.load(row + positions).to(tl.float32)
    else:
        logits = tl.load(row + positions, mask=within(positions, begin, end), other=EMPTY).to(tl.float32)
    marks = logits != logits
    logits = capped(logits, positions, begin, end, factor, CAPPED)
    return positions, marks, logits


@triton.jit
def _others(
    row,
    begin,
    end,
    factor,
    k,
    hard_k,
    TAIL: tl.constexpr,
    HARD: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pass 1: top, total, total at temperature 1, sum of the shifted logits in bits, and number of marks."""
    tops = tl.full([BLOCK // 8], EMPTY, tl.float32)
    totals = tl.zeros([BLOCK // 8], tl.float32)
    hards, sums, counts, marked = totals, totals, totals, totals
    for start in range(0, end, BLOCK):
        positions, marks, logits = _load(row, start, begin, end, factor, CAPPED, BLOCK)
        if TAIL == "bucket" or TAIL == "uniform":
            logits = tl.where(marks, EMPTY, logits)
            marked += tl.sum(marks.to(tl.float32), 1)
        new, shifted, exponentials, fade = online(tops, logits, k)
        if TAIL == "uniform":
            moved = tl.where(counts > 0, counts * drift(tops, new, k), 0.0)
            counted = within(positions, begin, end) & (marks == 0)
            sums += moved + tl.sum(tl.where(counted, shifted, 0.0), 1)
            counts += tl.sum(counted.to(tl.float32), 1)
        if HARD:
            _, _, hard, hard_fade = online(tops, logits, hard_k)
            hards = hards * hard_fade + tl.sum(hard, 1)
        totals = totals * fade + tl.sum(exponentials, 1)
        tops = new
    top, fade = combined(tops, k)
    if HARD:
        _, hard_fade = combined(tops, hard_k)
        hards = hards * hard_fade
    if TAIL == "uniform":
        sums = sums + tl.where(counts > 0, counts * drift(tops, top, k), 0.0)
    return top, tl.sum(totals * fade, 0), tl.sum(hards, 0), tl.sum(sums, 0), tl.sum(marked, 0)


@triton.jit
def _teacher(given, present, TAIL: tl.constexpr):
    """Probabilities and log-probabilities of the ids, 0 where absent; for "sampled" the weights."""
    if TAIL == "sampled":
        return given, given
    else:
        mass = tl.where(present, tl.exp(given), 0.0)
        if TAIL == "zero":
            return mass, given
        else:
            # 16-bit log-probabilities may add up to a little more than 1, and no rest can repair that
            total = tl.sum(mass, 0)
            divisor = total if TAIL == "renormalize" else tl.maximum(total, 1.0)
            return mass / divisor, tl.where(present, given - tl.log(divisor), 0.0)


@triton.jit
def _linear(q, mass, log_q, log_p, others_total, others_sum, others_top, top, total, num_others, k, TAIL: tl.constexpr):
    """The tails whose loss is linear in the student's log-probabilities: loss, the ids' gradient, and the others'
    as a multiple of their softmax plus a constant."""
    log_ratio = -log_q if TAIL == "sampled" else log_p - log_q
    loss = tl.sum(tl.where(mass == 0.0, 0.0, mass * log_ratio), 0)
    mass_total = tl.sum(mass, 0)
    if TAIL == "uniform":
        rest = tl.where(num_others > 0, tl.maximum(1.0 - mass_total, 0.0), 0.0)
        each = rest / tl.maximum(num_others, 1.0)
        others_log_q = others_sum * LN2 + num_others * (drift(others_top, top, k) * LN2 - tl.log(total))
        # nothing is spread, so nothing is lost where the student has a probability of zero
        loss += tl.where(each > 0, rest * tl.log(tl.maximum(each, _SMALLEST)) - each * others_log_q, 0.0)
        others_q = others_total * tl.exp2(drift(others_top, top, k)) / total
        return loss, q - mass, tl.where(num_others > 0, others_q, 0.0), -each
    elif TAIL == "renormalize":
        return loss, q - mass, 1.0, 0.0
    else:
        return loss, mass_total * q - mass, mass_total, 0.0


@triton.jit
def _bucket(
    q,
    p,
    log_q,
    log_p,
    is_rest,
    others_top,
    others_total,
    top,
    total,
    k,
    weight,
    REST_TOLD: tl.constexpr,
    KIND: tl.constexpr,
):
    """D over the ids and one bucket for the rest: loss, the ids' gradient, and the rest's."""
    rest_log_q = drift(others_top, top, k) * LN2 + tl.log(others_total / total)
    # every other logit is -inf: the smallest float, as in eager; beyond exp's range the logarithm is still exact
    rest_log_q = tl.where(others_top == EMPTY, tl.log(_SMALLEST), rest_log_q)
    q = tl.where(is_rest, tl.exp(rest_log_q), q)
    log_q = tl.where(is_rest, rest_log_q, log_q)
    if REST_TOLD:
        p = tl.where(is_rest, tl.maximum(p, _SMALLEST), p)
        log_p = tl.where(is_rest, tl.maximum(log_p, tl.log(_SMALLEST)), log_p)
    else:
        rest_p = tl.maximum(1.0 - tl.sum(p, 0), _SMALLEST)
        p = tl.where(is_rest, rest_p, p)
        log_p = tl.where(is_rest, tl.log(rest_p), log_p)
    if KIND == "forward_kl":
        loss = tl.sum(tl.where(p > 0, p * (log_p - log_q), 0.0), 0)
        by_q = kl_gradient(q, p, 0.0, loss, KIND)
    elif KIND == "reverse_kl":
        loss = tl.sum(tl.where(q > 0, q * (log_q - log_p), 0.0), 0)
        by_q = kl_gradient(q, p, log_q - log_p, loss, KIND)
    else:
        first, second = mixture_terms(q, p, weight, KIND)
        first, second = mixture_sums(tl.sum(first, 0), tl.sum(second, 0), KIND)
        loss = mixture_loss(first, second, weight, KIND)
        by_q = mixture_gradient(q, p, first, second, weight, KIND)
    by_rest = tl.sum(tl.where(is_rest, by_q, 0.0), 0)
    return loss, by_q, by_rest


@triton.jit
def _added_up(ids, ids_at, values_at, id_stride, value_stride, num_ids, IDS: tl.constexpr):
    """Each id's weight with that of its repetitions: all of them store the same gradient."""
    added = tl.zeros([IDS], tl.float32)
    for other in range(num_ids):
        other_id = tl.load(ids_at + other * id_stride).to(tl.int32)
        other_mass = tl.load(values_at + other * value_stride).to(tl.float32)
        added += tl.where(ids == other_id, other_mass, 0.0)
    return added


@triton.jit
def _write_others(
    student_row,
    gradient_row,
    begin,
    end,
    others_top,
    slope,
    constant,
    label_position,
    top,
    hard_inverse,
    factor,
    k,
    hard_k,
    gradient_scale,
    hard_scale,
    row_weight,
    HARD: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pass 2, from the row's end to its start: the gradient of the tokens off the ids; anything finite on the ids."""
    reference = above_empty(others_top)
    last = (end - 1) // BLOCK * BLOCK
    for step in range(0, end, BLOCK):
        start = last - step
        positions, _, logits = _load(student_row, start, begin, end, factor, CAPPED, BLOCK)
        result = gradient_scale * (slope * tl.exp2((logits - reference) * k) + constant)
        if HARD:
            hard_q = tl.exp2((logits - top) * hard_k) * hard_inverse
            result += hard_scale * tl.where(positions == label_position, hard_q - 1.0, hard_q)
        result *= row_weight
        if CAPPED:
            result *= 1.0 - logits * logits
        result = result.to(gradient_row.dtype.element_ty)
        if is_whole(start, begin, end, BLOCK):
            tl.store(gradient_row + positions, result)
        else:
            tl.store(gradient_row + positions, result, mask=within(positions, begin, end))
