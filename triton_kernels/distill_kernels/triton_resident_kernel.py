"""One row of student logits against a teacher's, held by a cluster of processors: each logit is read once.

    read      both rows into registers, in their own dtype; float32 is made of them anew in every step
    step 1    the top of both softmaxes
    step 2    their totals; of a KL its cross sum, of a label at another temperature the total there
    step 3    the two sums of a mixture's divergence; the KLs do without
    step 4    the gradient, if wanted

A logit's bytes, 16 bits each: 4, with gradient 6, whatever the divergence. After steps 1, 2 and 3 the cluster tells
each other what it found, once per step, and all of it has the same sums in the same order: no atomics.

A tile is what the cluster reads with 16 bytes (float32: 32) a thread; a row is TILES of them.
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
    INTERPRETED,
    above_empty,
    row_shift,
    row_start,
    tanh,
    tile_positions,
    within,
)


@triton.jit
def resident_kernel(
    student,
    teacher,
    gradient,
    loss,
    labels,
    row_weights,
    student_stride,
    teacher_stride,
    gradient_stride,
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
    KIND: tl.constexpr,
    IGNORES: tl.constexpr,
    HARD: tl.constexpr,
    UNIT_TEMPERATURE: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    ADDRESS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """One row: its loss, and its gradient where `gradient` is not None. `gradient` may be `student`.

    It needs no further barrier for that: a program writes after the reductions, which wait for what every program of
    the cluster found in the logits that it had read; the label's logit was read before them, too.
    """
    row = tl.program_id(0).to(tl.int64)
    label = 0
    if IGNORES or HARD:
        label = tl.load(labels + row)
    if IGNORES and label == ignore_index:
        tl.store(loss + row, 0.0)
        return
    row_weight = 1.0
    if row_weights is not None:
        row_weight = tl.load(row_weights + row)
    begin = row_shift(student, row, student_stride, ADDRESS)
    end = begin + num_tokens
    student_row = row_start(student, row, student_stride, ADDRESS)
    teacher_row = row_start(teacher, row, teacher_stride, ADDRESS)
    label_logit, label_position = 0.0, 0
    if HARD:
        label_logit = logit_at(begin + label, student_row, 1, student_factor, begin, end, STUDENT_CAPPED, True)
        label_position = (begin + label).to(tl.int32)
    students, teachers = (), ()
    for tile in tl.static_range(TILES):
        students += (_read(student_row, tile, begin, end, ADDRESS, BLOCK, TILES),)
        teachers += (_read(teacher_row, tile, begin, end, ADDRESS, BLOCK, TILES),)
    held = (students, teachers, begin, end, student_factor, teacher_factor)

    top, teacher_top = _tops(held, ADDRESS, PIECES, BLOCK, TILES)
    if STUDENT_CAPPED:  # which keeps the order of logits
        top = tanh(top * student_factor)
    if TEACHER_CAPPED:
        teacher_top = tanh(teacher_top * teacher_factor)
    total, teacher_total, cross, hard_total = _totals(
        held, top, teacher_top, student_k, teacher_k, hard_k,
        KIND, HARD and not UNIT_TEMPERATURE, STUDENT_CAPPED, TEACHER_CAPPED, ADDRESS, PIECES, BLOCK, TILES,
    )  # fmt: skip
    if HARD and UNIT_TEMPERATURE:
        hard_total = total

    softmaxes = (top, 1.0 / total, teacher_top, 1.0 / teacher_total)
    if KIND == "forward_kl" or KIND == "reverse_kl":
        first, second = kl_sums(cross, total, teacher_total, KIND)
        divergence = first
    else:
        first, second = _mixture_sums(
            held, softmaxes, _nothing(teacher_total), student_k, teacher_k, weight,
            KIND, STUDENT_CAPPED, TEACHER_CAPPED, ADDRESS, PIECES, BLOCK, TILES,
        )  # fmt: skip
        divergence = mixture_loss(first, second, weight, KIND)
    statistics = (top, total, teacher_top, teacher_total, hard_total)
    result = row_loss(divergence, statistics, label_logit, hard_k, loss_scale, hard_weight, HARD)
    tl.store(loss + row, result * row_weight)

    if gradient is not None:
        gradient_row = row_start(gradient, row, gradient_stride, ADDRESS)
        for tile in tl.static_range(TILES):
            positions, one, other = _pair(
                held, tile, _nothing(total), STUDENT_CAPPED, TEACHER_CAPPED, ADDRESS, PIECES, BLOCK, TILES
            )
            slope = logit_gradient(
                positions, one, other, softmaxes, first, second, label_position, 1.0 / hard_total,
                student_k, teacher_k, hard_k, weight, gradient_scale, hard_scale, row_weight,
                KIND, HARD, UNIT_TEMPERATURE, STUDENT_CAPPED,
            )  # fmt: skip
            slope = slope.to(gradient.dtype.element_ty)
            _write(gradient_row, positions, slope, tile, begin, end, ADDRESS, PIECES, TILES)


@triton.constexpr_function
def _is_edge(tile, ADDRESS, TILES):
    """Whether a tile may have positions outside the row; a shifted row may leave the last tile empty."""
    return tile == TILES - 1 or (ADDRESS == "shifted" and (tile == 0 or tile == TILES - 2))


@triton.jit
def _read(row, tile: tl.constexpr, begin, end, ADDRESS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """A tile in its own dtype; -inf in pieces of 16 bytes that the row has no part in.

    Of a piece that it shares with a neighbour all is read: 16 bytes belong to one allocation. A mask that is the same
    for a whole piece leaves it one access.
    """
    PIECE: tl.constexpr = 128 // row.dtype.element_ty.primitive_bitwidth
    positions = tile_positions(tile * BLOCK, BLOCK)
    if _is_edge(tile, ADDRESS, TILES):
        touched = (positions // PIECE >= begin // PIECE) & (positions // PIECE <= (end - 1) // PIECE)
        return tl.load(row + positions, mask=touched, other=EMPTY)
    else:
        return tl.load(row + positions)


@triton.jit
def _write(
    row,
    positions,
    values,
    tile: tl.constexpr,
    begin,
    end,
    ADDRESS: tl.constexpr,
    PIECES: tl.constexpr,
    TILES: tl.constexpr,
):
    """Stores a tile's part of the row, 16 bytes at a time but in pieces that it shares with a neighbour."""
    PIECE: tl.constexpr = 128 // row.dtype.element_ty.primitive_bitwidth
    if _is_edge(tile, ADDRESS, TILES):
        start = positions // PIECE * PIECE
        whole = (start >= begin) & (start + PIECE <= end)
        tl.store(row + positions, values, mask=whole)
        if not PIECES:
            tl.store(row + positions, values, mask=within(positions, begin, end) & (whole == 0))
    else:
        tl.store(row + positions, values)


@triton.jit
def _nothing(number):
    """0, which the compiler cannot know; 1 in a row that NaN has spoilt."""
    return (number != number).to(tl.int32)


@triton.jit
def _logits(
    logits,
    positions,
    begin,
    end,
    factor,
    nothing,
    CAPPED: tl.constexpr,
    EDGE: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Logits in float32, capped but not scaled, -inf outside the row; made anew of the bits that are held.

    The compiler would keep what an earlier step made of the same bits, which takes several times the registers. With
    `nothing` in between it cannot see that they are the same.
    """
    if INTERPRETED or nothing is None:
        result = logits.to(tl.float32)
    elif logits.dtype.primitive_bitwidth == 16:
        same = tl.inline_asm_elementwise(
            "xor.b32 $0, $1, $2;", "=r,r,r,r", [logits, nothing], logits.dtype, is_pure=True, pack=2
        )
        result = same.to(tl.float32)
    else:
        result = (logits.to(tl.int32, bitcast=True) ^ nothing).to(tl.float32, bitcast=True)
    if CAPPED:
        result = tanh(result * factor)
    if EDGE and (CAPPED or not PIECES):
        result = tl.where(within(positions, begin, end), result, EMPTY)
    return result


@triton.jit
def _pair(
    held,
    tile: tl.constexpr,
    nothing,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    ADDRESS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """Positions of a tile and both models' `_logits`."""
    students, teachers, begin, end, student_factor, teacher_factor = held
    EDGE: tl.constexpr = _is_edge(tile, ADDRESS, TILES)
    positions = tile_positions(tile * BLOCK, BLOCK)
    student = _logits(students[tile], positions, begin, end, student_factor, nothing, STUDENT_CAPPED, EDGE, PIECES)
    teacher = _logits(teachers[tile], positions, begin, end, teacher_factor, nothing, TEACHER_CAPPED, EDGE, PIECES)
    return positions, student, teacher


@triton.jit
def _tops(held, ADDRESS: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Step 1: the largest raw logits of both rows."""
    top = tl.full([BLOCK // 8], EMPTY, tl.float32)
    teacher_top = top
    for tile in tl.static_range(TILES):
        _, student, teacher = _pair(held, tile, None, False, False, ADDRESS, PIECES, BLOCK, TILES)
        top = tl.maximum(top, tl.max(student, 1))
        teacher_top = tl.maximum(teacher_top, tl.max(teacher, 1))
    # joined, for the cluster meets once for each tensor that it reduces
    return tl.split(tl.max(tl.join(top, teacher_top), 0))


@triton.jit
def _totals(
    held,
    top,
    teacher_top,
    student_k,
    teacher_k,
    hard_k,
    KIND: tl.constexpr,
    HARD: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    ADDRESS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """Step 2: both totals, the KL's cross sum in bits, the hard total."""
    total = tl.zeros([BLOCK // 8], tl.float32)
    teacher_total, cross, hard_total = total, total, total
    reference, teacher_reference = above_empty(top), above_empty(teacher_top)
    for tile in tl.static_range(TILES):
        _, student, teacher = _pair(
            held, tile, _nothing(top), STUDENT_CAPPED, TEACHER_CAPPED, ADDRESS, PIECES, BLOCK, TILES
        )
        student_log = (student - reference) * student_k
        teacher_log = (teacher - teacher_reference) * teacher_k
        student_exp, teacher_exp = tl.exp2(student_log), tl.exp2(teacher_log)
        total += tl.sum(student_exp, 1)
        teacher_total += tl.sum(teacher_exp, 1)
        if KIND == "forward_kl" or KIND == "reverse_kl":
            cross += tl.sum(kl_terms(student_log, student_exp, teacher_log, teacher_exp, KIND), 1)
        if HARD:
            hard_total += tl.sum(tl.exp2((student - reference) * hard_k), 1)
    sums = tl.sum(tl.join(tl.join(total, teacher_total), tl.join(cross, hard_total)), 0)
    totals, others = tl.split(sums)
    total, teacher_total = tl.split(totals)
    cross, hard_total = tl.split(others)
    return total, teacher_total, cross, hard_total


@triton.jit
def _mixture_sums(
    held,
    softmaxes,
    nothing,
    student_k,
    teacher_k,
    weight,
    KIND: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    ADDRESS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """Step 3: `mixture_sums` of the row."""
    first = tl.zeros([BLOCK // 8], tl.float32)
    second = first
    for tile in tl.static_range(TILES):
        _, student, teacher = _pair(held, tile, nothing, STUDENT_CAPPED, TEACHER_CAPPED, ADDRESS, PIECES, BLOCK, TILES)
        q, p, _, _ = probabilities(student, teacher, softmaxes, student_k, teacher_k)
        one, other = mixture_terms(q, p, weight, KIND)
        first += tl.sum(one, 1)
        second += tl.sum(other, 1)
    first, second = tl.split(tl.sum(tl.join(first, second), 0))
    return mixture_sums(first, second, KIND)
