"""What a student's last step is made of: hidden states, head, bias, and a low-rank update of the head if it has one."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LowRankHead:
    """A head of `weight + scale * lora_B @ lora_A`, as LoRA has it: nothing of its size is made for a gradient.

    Passed where `student_head` is expected. The logits are
    `hidden @ weight.T + scale * (hidden @ lora_A.T) @ lora_B.T`, and the gradient goes to hidden states, `lora_A` and
    `lora_B`; `weight` is frozen. Without dropout: one before `lora_A` alone would need hidden states of its own.

    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    weight: Tensor
    """`[V, H]`, without requires_grad."""
    lora_A: Tensor
    """`[r, H]`; PEFT's `lora_A[adapter].weight`."""
    lora_B: Tensor
    """`[V, r]`; PEFT's `lora_B[adapter].weight`."""
    scale: float
    """PEFT's `scaling[adapter]`: alpha / r."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """The tensors that may want a gradient, by name; `head` is `[V, H]`, the weight alone of a LowRankHead."""

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    lora_A: Tensor | None = None
    lora_B: Tensor | None = None
    lora_scale: float = 1.0

    @staticmethod
    def of(hidden: Tensor, head: Tensor | LowRankHead, bias: Tensor | None) -> "Student":
        """From the arguments of a public op."""
        if not isinstance(head, LowRankHead):
            return Student(hidden=hidden, head=head, bias=bias)
        low_rank = {"lora_A": head.lora_A, "lora_B": head.lora_B, "lora_scale": head.scale}
        return Student(hidden=hidden, head=head.weight, bias=bias, **low_rank)

    @property
    def tensors(self) -> list[Tensor | None]:
        """Hidden states, head, bias, lora_A, lora_B: the order of the gradients."""
        return [self.hidden, self.head, self.bias, self.lora_A, self.lora_B]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor | None], lora_scale: float) -> "Student":
        """From tensors in the order of `tensors`."""
        hidden, head, bias, lora_A, lora_B = tensors
        assert hidden is not None and head is not None
        low_rank = {"lora_A": lora_A, "lora_B": lora_B, "lora_scale": lora_scale}
        return Student(hidden=hidden, head=head, bias=bias, **low_rank)

    @property
    def flat_tensors(self) -> list[Tensor | None]:
        """`tensors` with hidden states `[N, H]`."""
        hidden, *others = self.tensors
        assert hidden is not None
        return [hidden.reshape(hidden.shape[:-1].numel(), hidden.shape[-1]), *others]
