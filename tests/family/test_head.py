"""A model that lies on several devices: its head follows. Tensors without data stand in for those of two GPUs."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.family.head import Head


def test_the_head_takes_hidden_states_from_another_device():
    first, last = torch.device("cuda", 0), torch.device("cuda", 1)
    with FakeTensorMode():
        head = Head(torch.empty(50, 8, device=first), torch.empty(50, device=first), 1.0, 30.0)
        assert head.logits(torch.empty(3, 8, device=last)).device == first
