"""Packing against Python's whole numbers, which have as many bits as it takes."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distill.targets.packing import MAX_WIDTH, bits_for, pack, packed_bytes, unpack


@st.composite
def numbers_of_a_width(draw):
    width = draw(st.integers(1, MAX_WIDTH))
    most = 2**width - 1
    return width, draw(st.lists(st.one_of(st.integers(0, most), st.just(most)), max_size=40))


def written_out(numbers, width) -> bytes:
    total = sum(number << (width * place) for place, number in enumerate(numbers))
    return total.to_bytes(-(-width * len(numbers) // 8), "little")


@settings(deadline=None)
@given(numbers_of_a_width())
@example((57, [2**57 - 1] * 9))  # the eighth begins at the last bit of a byte
@example((1, []))
def test_packed_is_one_long_number(case):
    width, numbers = case
    packed = pack(np.array(numbers, dtype=np.uint64), width)
    assert packed == written_out(numbers, width)
    assert len(packed) == packed_bytes(len(numbers), width)


@settings(deadline=None)
@given(numbers_of_a_width(), st.binary(max_size=3), st.binary(max_size=3))
@example((57, [2**57 - 1] * 9), b"", b"")
@example((57, [2**57 - 1] * 8), b"", b"")  # the last bit of the last byte
def test_unpacked_are_the_numbers_wherever_they_lie(case, before, after):
    width, numbers = case
    lies_in = memoryview(before + written_out(numbers, width) + after)[len(before) :]
    assert unpack(lies_in, len(numbers), width).tolist() == numbers


@pytest.mark.parametrize(
    ("num_values", "bits"), [(1, 1), (2, 1), (3, 2), (256, 8), (257, 9), (151_936, 18), (2**20, 20)]
)
def test_bits_for(num_values, bits):
    assert bits_for(num_values) == bits
