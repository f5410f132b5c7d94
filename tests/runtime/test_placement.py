"""What weights may fill of GPUs that are not here."""

import torch

from distill.runtime import _placement


def test_weights_leave_room_on_every_gpu_and_in_the_cpus_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    free = {0: 80_000, 1: 70_000, "cpu": 500_000}
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: dict(free))
    assert _placement.places(None, "auto", quantised=False) == {
        "device_map": "auto",
        "max_memory": {0: 64_000, 1: 56_000, "cpu": 400_000},
    }
    assert _placement.places(None, "auto", quantised=True)["max_memory"] is None
    assert _placement.places("cpu", None, quantised=False) == {"device_map": {"": "cpu"}}


def test_without_a_gpu_transformers_decides():
    assert not torch.cuda.is_available() and _placement.room_for_weights() is None
