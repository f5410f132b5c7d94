"""The seam between a loss and the kernels: student states and teacher targets in, summed nats out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.errors import TargetMismatch
from distill.family.head import LowRank, product

if TYPE_CHECKING:
    from distill_kernels import LowRankHead
    from torch import Tensor

    from distill.responses import TeacherTargets

IGNORED = -100

# B rows, T positions, N of them counted, D hidden size, V vocabulary, K targets kept


@dataclass(frozen=True)
class StudentOutput:
    """What a loss needs of the student for one batch.

    `hidden_BTD` before the head, `head_VD` and `bias_V` of the head; `labels_BT` the next token at each position,
    -100 where none counts; `weights_BT` what each position's loss is multiplied by.
    `scale` and `softcap` are what the architecture does to its logits; `low_rank` is a LoRA on the head, whose own
    weight is frozen then.
    """

    hidden_BTD: "Tensor"
    head_VD: "Tensor"
    labels_BT: "Tensor"
    weights_BT: "Tensor"
    bias_V: "Tensor | None" = None
    scale: float = 1.0
    softcap: float | None = None
    low_rank: LowRank | None = None

    @property
    def head(self) -> "Tensor | LowRankHead":
        """The head as the kernels take it."""
        if self.low_rank is None:
            return self.head_VD
        from distill_kernels import LowRankHead

        update = self.low_rank
        return LowRankHead(weight=self.head_VD, lora_A=update.A_RD, lora_B=update.B_VR, scale=update.scale)


@dataclass(frozen=True)
class LossTerms:
    """Sums: `total` in nats over all counted positions, `tokens` the sum of their weights. The trainer divides once."""

    total: "Tensor"
    tokens: "Tensor"


def divergence_terms(
    kind: str, student: StudentOutput, targets: "TeacherTargets", *, temperature: float, hard_weight: float, **options
) -> LossTerms:
    """Sum of (1 - hard_weight) T^2 D(teacher, student) + hard_weight CE(text) over the counted positions.

    Raises:
        TargetMismatch: these targets cannot give this divergence at this temperature.
    """
    if targets.kind in {"top_k", "sampled", "frozen_head"} and temperature != targets.temperature:
        raise TargetMismatch(
            f"The stored targets are at temperature {targets.temperature}; what was not kept cannot be re-tempered to "
            f"{temperature}. Use loss.temperature={targets.temperature}, or keep the teacher with teacher.live=true."
        )
    if targets.kind in {"sampled", "frozen_head"} and kind != "forward_kl":
        raise TargetMismatch(
            f"{targets.kind} targets are exact on average for forward KL alone; {kind} is not linear in the teacher's "
            "probabilities. Use teacher.targets=top_k."
        )
    terms = {"top_k": _top_k, "sampled": _sampled, "dense": _dense, "frozen_head": _frozen_head, "live": _live}
    common = dict(
        labels=student.labels_BT,
        hard_weight=hard_weight,
        row_weight=student.weights_BT,
        temperature=temperature,
        student_scale=student.scale,
        student_softcap=student.softcap,
        **options,
    )
    return LossTerms(total=terms[targets.kind](kind, student, targets, common), tokens=_counted_weight(student))


def _live(kind: str, student: StudentOutput, targets: "TeacherTargets", common: dict[str, Any]) -> "Tensor":
    import distill_kernels

    return distill_kernels.linear_divergence(
        student.hidden_BTD,
        student.head,
        targets.hidden_BTD,
        targets.head_VD,
        kind,
        student_bias=student.bias_V,
        teacher_bias=targets.bias_V,
        teacher_scale=targets.scale,
        teacher_softcap=targets.softcap,
        **common,
    )


def _top_k(kind: str, student: StudentOutput, targets: "TeacherTargets", common: dict[str, Any]) -> "Tensor":
    import distill_kernels

    return distill_kernels.linear_sparse_divergence(
        student.hidden_BTD,
        student.head,
        targets.token_ids_BTK,
        targets.values_BTK,
        kind,
        tail="bucket",
        student_bias=student.bias_V,
        **common,
    )


def _sampled(kind: str, student: StudentOutput, targets: "TeacherTargets", common: dict[str, Any]) -> "Tensor":
    """The sampled cross-entropy minus the teacher's entropy, which was kept: unbiased for the divergence."""
    import distill_kernels

    assert targets.entropy_BT is not None
    total = distill_kernels.linear_sparse_divergence(
        student.hidden_BTD,
        student.head,
        targets.token_ids_BTK,
        targets.values_BTK,
        tail="sampled",
        student_bias=student.bias_V,
        **common,
    )
    return total - _weighted(targets.entropy_BT, student, common)


def _dense(kind: str, student: StudentOutput, targets: "TeacherTargets", common: dict[str, Any]) -> "Tensor":
    """Logits of a small vocabulary are small enough to be made; log-probabilities serve as the teacher's logits."""
    import distill_kernels

    logits_BTV = product(student.hidden_BTD, student.head_VD, student.bias_V, student.low_rank)
    return distill_kernels.divergence(logits_BTV, targets.logprobs_BTV, kind, **common)


def _frozen_head(kind: str, student: StudentOutput, targets: "TeacherTargets", common: dict[str, Any]) -> "Tensor":
    """LSE(z) - h . (p W) - H(p), with LSE(z) = CE(y) + z_y for the text's own token y. Exact, as W is constant."""
    import torch

    assert targets.vectors_BTD is not None and targets.entropy_BT is not None
    trained = student.head_VD.requires_grad or student.low_rank is not None
    if trained or student.bias_V is not None or student.softcap is not None:
        raise TargetMismatch(
            "frozen_head targets need an output head that is not trained and has neither bias nor soft cap. "
            "Use teacher.targets=sampled."
        )
    scale = student.scale / common["temperature"]
    counted_BT = student.labels_BT != IGNORED
    labels_N, weights_N = student.labels_BT[counted_BT], student.weights_BT[counted_BT]
    hidden_ND, vectors_ND = student.hidden_BTD[counted_BT].float(), targets.vectors_BTD[counted_BT]
    hard_weight, square = common["hard_weight"], common["temperature"] ** 2
    # divergence's own cross-entropy is at the temperature, the text's at 1
    soft_ce = _cross_entropy(student, scale, (1 - hard_weight) * square)
    hard_ce = _cross_entropy(student, student.scale, hard_weight) if hard_weight else 0.0
    difference_N = torch.linalg.vecdot(hidden_ND, student.head_VD[labels_N].float() - vectors_ND) * scale
    rest = (weights_N * difference_N).sum() * (1 - hard_weight) * square
    return soft_ce + rest + hard_ce - _weighted(targets.entropy_BT, student, common)


def _weighted(entropy_BT: "Tensor", student: StudentOutput, common: dict[str, Any]) -> "Tensor":
    """Sum of the teacher's entropies as the divergence weighs them."""
    factor = (1 - common["hard_weight"]) * common["temperature"] ** 2
    return (entropy_BT * student.weights_BT * (student.labels_BT != IGNORED)).sum() * factor


def text_terms(student: StudentOutput) -> LossTerms:
    """Sum of the cross-entropy with the labels."""
    return LossTerms(total=_cross_entropy(student, student.scale, 1.0), tokens=_counted_weight(student))


def _cross_entropy(student: StudentOutput, scale: float, factor: float) -> "Tensor":
    """One sampled target of weight one at each position: the next token of the text."""
    import distill_kernels

    labels = student.labels_BT
    return distill_kernels.linear_sparse_divergence(
        student.hidden_BTD,
        student.head,
        labels.unsqueeze(-1),
        1.0,
        tail="sampled",
        labels=labels,
        row_weight=student.weights_BT * factor,
        student_bias=student.bias_V,
        student_scale=scale,
        student_softcap=student.softcap,
    )


def _counted_weight(student: StudentOutput) -> "Tensor":
    return (student.weights_BT * (student.labels_BT != IGNORED)).sum()
