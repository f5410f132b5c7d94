"""Pieces of the row kernels: a soft cap, the sums of a softmax built up while a row streams by, a row's address.

A tile is `[BLOCK / 8, 8]` positions of a row. Eight neighbours lie in one thread (16 bytes of 16-bit logits), so a
running maximum per group of eight costs no exchange between threads; groups are combined once, when the row is read.

A softmax is kept as (top, total): the largest logit before any scaling, and the sum of 2 ** ((logit - top) * k) with
k = scale / temperature * log2(e). Their logarithms are never added: at an offset of 1e4 that sum has three digits
left. top = -inf says that nothing was seen yet, and its total is 0. A NaN stays in the total.
"""

# Triton's language looks like Python and has other types.
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false

import os

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2_E = 1.4426950408889634
EMPTY = tl.constexpr(float("-inf"))
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # the interpreter has no inline assembly


@triton.jit
def log2(x):
    """The special function unit's, within 2^-22 (relative outside 0.5 to 2): one instruction where tl.log2 is 20."""
    if INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(x):
    """1 / x for 1e-37 < x: within one unit in the last place, one instruction where a division is eight."""
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def tanh(x):
    """tanh without libdevice, which the interpreter lacks: odd polynomial below 0.625, relative error 2e-7 above.

    1 - 2 / (e^2x + 1) alone is 6e-8 off near 0, which a cap of 30 would turn into an error of 2e-6 nats. The
    coefficients are a least-squares fit on Chebyshev nodes, 5e-9 off in exact arithmetic.
    """
    square = x * x
    series = -0.005703992675989866
    series = series * square + 0.020637817680835724
    series = series * square - 0.053739145398139954
    series = series * square + 0.133314311504364
    series = series * square - 0.3333328068256378
    far = 1.0 - 2.0 * reciprocal(tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(square < 0.390625, x + x * (square * series), tl.where(x < 0, -far, far))


@triton.jit
def capped(logits, positions, begin, end, factor, CAPPED: tl.constexpr):
    """tanh(factor * logits) where there is a soft cap, -inf outside the row; the cap itself is part of k."""
    if CAPPED:
        logits = tl.where(within(positions, begin, end), tanh(logits * factor), EMPTY)
    return logits


@triton.jit
def within(positions, begin, end):
    """Which positions belong to the row."""
    return (positions >= begin) & (positions < end)


@triton.jit
def is_whole(start, begin, end, BLOCK: tl.constexpr):
    """Whether all of a tile does. A mask costs 16-byte loads and stores; only a row's first and last tile need one.

    The mask is written down inside the branch that uses it: before it, every tile would pay for it.
    """
    return (start >= begin) & (start + BLOCK <= end)


@triton.jit
def tile_positions(start, BLOCK: tl.constexpr):
    """`[BLOCK / 8, 8]` consecutive positions from `start`."""
    group, lane = tl.arange(0, BLOCK // 8), tl.arange(0, 8)
    return start + group[:, None] * 8 + lane[None, :]


@triton.jit
def row_start(pointer, row, stride, ADDRESS: tl.constexpr):
    """The address of a row. "aligned": a multiple of 16 bytes. "shifted": rounded down to one. "any": as it is.

    "shifted" is for vocabularies that are no multiple of 8: a row then starts inside 16 bytes that all belong to the
    same allocation, and every tile but the first and last is read and written 16 bytes at a time.
    """
    address = pointer + row * stride
    if ADDRESS == "shifted":
        address = ((address.to(tl.int64) // 16) * 16).to(pointer.dtype)
    if ADDRESS != "any":
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def row_shift(pointer, row, stride, ADDRESS: tl.constexpr):
    """Positions between `row_start` and the row's first token."""
    shift = 0
    if ADDRESS == "shifted":
        address = pointer + row * stride
        shift = ((address.to(tl.int64) % 16) // (pointer.dtype.element_ty.primitive_bitwidth // 8)).to(tl.int32)
    return shift


@triton.jit
def token_offsets(positions, stride, CONTIGUOUS: tl.constexpr):
    """Where positions lie in memory; a row whose tokens are `stride` apart may span more than 2**31."""
    if CONTIGUOUS:
        return positions
    else:
        return positions.to(tl.int64) * stride


@triton.jit
def above_empty(top):
    """top, and 0 where nothing was seen: -inf - -inf would be NaN."""
    return tl.where(top == EMPTY, 0.0, top)


@triton.jit
def online(top, logits, k):
    """One more tile `[groups, 8]`: the new top `[groups]`, the shifted logits, their exponentials, what is left of
    the old total's unit."""
    new_top = tl.maximum(top, tl.max(logits, 1))
    reference = above_empty(new_top)
    shifted = (logits - reference[:, None]) * k
    return new_top, shifted, tl.exp2(shifted), tl.exp2((top - reference) * k)


@triton.jit
def drift(top, new_top, k):
    """How far shifted logits move when the top does."""
    return (top - above_empty(new_top)) * k


@triton.jit
def combined(top, k):
    """The row's top of the groups', and each group's weight in the row's total."""
    row_top = tl.max(top, 0)
    return row_top, tl.exp2((top - above_empty(row_top)) * k)
