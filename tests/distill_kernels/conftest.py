"""Makes the float64 oracle importable by the tests beside it, and keeps the runs small."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no path of its own


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
