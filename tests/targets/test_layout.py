"""The sizes that a store's bytes cannot be read without."""

import pytest

from distill.targets import Layout


@pytest.mark.parametrize(("vocab_size", "bits"), [(2, 1), (512, 9), (513, 10), (151_936, 18), (2**20, 20)])
def test_an_id_takes_as_many_bits_as_the_vocabulary_needs(vocab_size, bits):
    assert Layout("next", vocab_size).id_bits == bits
