"""Bit packing: whole numbers of `width` bits each, one after another, lowest bit first."""

import numpy as np

MAX_WIDTH = 57
"""A number that starts at any bit of a byte must end within eight bytes."""


def pack(numbers_E: np.ndarray, width: int) -> bytes:
    """The numbers, each below 2 ** width, in ceil(E * width / 8) bytes."""
    bits_EW = (numbers_E.astype(np.uint64)[:, None] >> np.arange(width, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(bits_EW.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def unpack(packed: bytes | memoryview, count: int, width: int) -> np.ndarray:
    """uint64 `[count]`: what `pack` was given."""
    assert 0 < width <= MAX_WIDTH
    data = bytes(packed[: packed_bytes(count, width)]) + bytes(8)  # room for the last number's eight bytes
    first_bit_E = np.arange(0, count * width, width, dtype=np.int64)
    eight_bytes = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))
    found_E = eight_bytes[first_bit_E >> 3]
    found_E >>= (first_bit_E & 7).astype(np.uint64)
    found_E &= np.uint64((1 << width) - 1)
    return found_E


def packed_bytes(count: int, width: int) -> int:
    """Bytes that `count` numbers take."""
    return (count * width + 7) // 8


def bits_for(num_values: int) -> int:
    """Bits that tell `num_values` values apart, at least one."""
    return max(1, (num_values - 1).bit_length())
