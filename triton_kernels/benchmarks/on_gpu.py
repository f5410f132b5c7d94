"""A pytest plugin that makes every tensor of the tests on the GPU; in this folder, `pytest -p on_gpu`.

The tests of the ops were written for any device and name none; with DISTILL_KERNELS=triton they then test the kernels.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _tensors_on_the_gpu() -> Iterator[None]:
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)
