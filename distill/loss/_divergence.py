"""The seam between a loss and the kernels: student states and teacher targets in, summed nats out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.errors import TargetMismatch

if TYPE_CHECKING:
    from torch import Tensor

    from distill.responses import TeacherTargets

# B rows, T positions, D hidden size, V vocabulary, K targets kept


@dataclass(frozen=True)
class StudentOutput:
    """What a loss needs of the student for one batch.

    `hidden_BTD` before the head, `head_VD` and `bias_V` of the head; `labels_BT` the next token at each position,
    -100 where none counts; `weights_BT` what each position's loss is multiplied by.
    `scale` and `softcap` are what the architecture does to its logits.
    """

    hidden_BTD: "Tensor"
    head_VD: "Tensor"
    labels_BT: "Tensor"
    weights_BT: "Tensor"
    bias_V: "Tensor | None" = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class LossTerms:
    """Sums: `total` in nats over all counted positions, `tokens` the sum of their weights. The trainer divides once."""

    total: "Tensor"
    tokens: "Tensor"


def divergence_terms(
    kind: str, student: StudentOutput, targets: "TeacherTargets", *, temperature: float, hard_weight: float, **options
) -> LossTerms:
    """Sum of (1 - hard_weight) T^2 D(teacher, student) + hard_weight CE(text) over the counted positions."""
    import distill_kernels

    common = dict(
        labels=student.labels_BT,
        hard_weight=hard_weight,
        row_weight=student.weights_BT,
        temperature=temperature,
        student_bias=student.bias_V,
        student_scale=student.scale,
        student_softcap=student.softcap,
        **options,
    )
    if targets.kind == "live":
        total = distill_kernels.linear_divergence(
            student.hidden_BTD,
            student.head_VD,
            targets.hidden_BTD,
            targets.head_VD,
            kind,
            teacher_bias=targets.bias_V,
            teacher_scale=targets.scale,
            teacher_softcap=targets.softcap,
            **common,
        )
    else:
        if temperature != 1.0:
            raise TargetMismatch(
                f"Stored targets keep their tail at temperature 1; it cannot be re-tempered to {temperature}. "
                "Use loss.temperature=1, or keep the teacher in memory with teacher.live=true."
            )
        total = distill_kernels.linear_sparse_divergence(
            student.hidden_BTD,
            student.head_VD,
            targets.token_ids_BTK,
            targets.logprobs_BTK,
            kind,
            tail="bucket",
            **common,
        )
    return LossTerms(total=total, tokens=_counted_weight(student))


def text_terms(student: StudentOutput) -> LossTerms:
    """Sum of the cross-entropy with the labels: one sampled target of weight one at each position."""
    import distill_kernels

    labels = student.labels_BT
    total = distill_kernels.linear_sparse_divergence(
        student.hidden_BTD,
        student.head_VD,
        labels.unsqueeze(-1),
        1.0,
        tail="sampled",
        labels=labels,
        row_weight=student.weights_BT,
        student_bias=student.bias_V,
        student_scale=student.scale,
        student_softcap=student.softcap,
    )
    return LossTerms(total=total, tokens=_counted_weight(student))


def _counted_weight(student: StudentOutput) -> "Tensor":
    return (student.weights_BT * (student.labels_BT != -100)).sum()
