"""`loss=aligned`: for a teacher with another tokenizer. The likelihoods of spans of text are matched.

Where two tokenizations of a response have a boundary at the same byte, a span begins and ends; p and q are the
probabilities of its text by the teacher and the student, products over their own tokens. Their distributions have no
common vocabulary, but "this span comes next, yes or no" is an event to both. With temperature t, a = p^(1/t) and
b = q^(1/t), a span costs

    t KL(Bernoulli(a) || Bernoulli(b)) = t (a ln(a / b) + (1 - a) ln((1 - a) / (1 - b)))

Approximate Likelihood Matching (Minixhofer, Vulić, Ponti 2025, arXiv:2503.20083), whose factor is 1 instead of t.

Why this form:
* At t = 1 it is a lower bound of the KL between the two distributions over all continuations: merging all but the
  span into one outcome can only lose divergence (data processing). It is zero exactly where p = q at every t, and
  unlike a difference of logarithms it does not chase noise in spans that both find unlikely.
* The derivative by ln q is (b - a) / (1 - b). A student less sure than the teacher gets at most the gradient of
  cross-entropy. For a surer one it grows with 1 / (1 - b), but the softmax below multiplies it by no more than 1 - q,
  and (1 - q) / (1 - b) <= max(1, t): by the logits no derivative exceeds max(1, t) |b - a| for a token.
* At t = 1 a span teaches in proportion to a: what the teacher finds unlikely is hardly taught. For growing t the
  limit is that of surprisals, u ln(u / v) - u + v with u = -ln p, v = -ln q: cross-entropy that stops at the teacher's.
  The factor t keeps the size of gradients on the way there; t², right for tempered logits, would let them grow.

What is approximate: p is the teacher's probability of these tokens after these tokens. The probability of the text
alone would add up all ways of cutting it, and a prefix that ends where a token does already says something about what
follows (a token " th" is hardly followed by "e", for " the" is one token). Teacher and student have different such
biases, the closer to zero the nearer the span's ends are to natural ones, such as blanks; nothing here removes it.
Only the text that was written is compared: of the alternatives a teacher had in mind, each span tells its total alone.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT

if TYPE_CHECKING:
    from torch import Tensor

    from distill.loss._divergence import LossTerms, StudentOutput
    from distill.responses import TeacherTargets

SURE_NATS = 1e-5
"""Taken off both log-probabilities: what float32 cannot tell from certainty, where 1 - b would be rounding alone."""

# B rows, T positions, C spans of a row


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Aligned:
    """Likelihoods of the spans of bytes that teacher and student share, whatever their tokenizers."""

    kind: Literal["aligned"]
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Roots of the spans' probabilities; the more, the more unlikely spans count."""
    hard_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the cross-entropy with the text; the spans get the rest. Tokens in no span learn the text alone.
    0 was far worse than the text alone for a student from scratch (`benchmarks/aligned.py`)."""

    def __call__(self, student: "StudentOutput", targets: "TeacherTargets") -> "LossTerms":
        """Weighted sum over tokens, in nats: a span's divergence once for each of the student's tokens in it."""
        import torch

        from distill.loss._divergence import IGNORED, LossTerms

        assert targets.span_BT is not None and targets.span_logprob_BC is not None
        cross_entropy_BT = _cross_entropy(student)
        counted_BT = student.labels_BT != IGNORED
        weights_BT = torch.where(counted_BT, student.weights_BT, 0.0).to(cross_entropy_BT.dtype)
        inside_BT = counted_BT & (targets.span_BT >= 0)

        divergence = self._divergence(cross_entropy_BT, weights_BT, inside_BT, targets)
        hard_BT = torch.where(inside_BT, self.hard_weight * weights_BT, weights_BT)
        total = (1 - self.hard_weight) * divergence + (hard_BT * cross_entropy_BT).sum()
        return LossTerms(total=total, tokens=weights_BT.sum())

    def _divergence(
        self, cross_entropy_BT: "Tensor", weights_BT: "Tensor", inside_BT: "Tensor", targets: "TeacherTargets"
    ) -> "Tensor":
        import torch

        assert targets.span_BT is not None and targets.span_logprob_BC is not None
        B, C = targets.span_logprob_BC.shape
        row_B1 = torch.arange(B, device=inside_BT.device).unsqueeze(-1)
        place_N = (targets.span_BT + C * row_B1)[inside_BT]

        def add_up(values_BT: "Tensor") -> "Tensor":
            return values_BT.new_zeros(B * C).index_add(0, place_N, values_BT[inside_BT])

        student_logprob_M = -add_up(cross_entropy_BT)
        weight_M = add_up(weights_BT)
        value_M, slope_M = binarised_kl(targets.span_logprob_BC.flatten(), student_logprob_M.detach(), self.temperature)
        # the slope in closed form: autograd would take the difference b - a from two rounded quotients
        attached_M = value_M + slope_M * (student_logprob_M - student_logprob_M.detach())
        return (weight_M * attached_M).sum()


def binarised_kl(
    teacher_logprob_M: "Tensor", student_logprob_M: "Tensor", temperature: float
) -> tuple["Tensor", "Tensor"]:
    """t KL(Bernoulli(p^(1/t)) || Bernoulli(q^(1/t))) in nats, and its derivative by ln q; in the student's dtype.

    Computed in float64, for at a high temperature both events are nearly certain. Both zero, to the last bit, where
    the log-probabilities are equal. A teacher's -inf is p = 0.
    """
    import torch

    # finite, for 0 * inf would be NaN
    a_M, b_M = (
        ((logprob_M.double().clamp(-1e4, 0.0) - SURE_NATS) / temperature)
        for logprob_M in (teacher_logprob_M, student_logprob_M)
    )
    not_a_M, not_b_M = -torch.expm1(a_M), -torch.expm1(b_M)
    value_M = a_M.exp() * (a_M - b_M) + not_a_M * (not_a_M / not_b_M).log()
    slope_M = (not_a_M - not_b_M) / not_b_M
    dtype = student_logprob_M.dtype
    return (temperature * value_M).to(dtype), slope_M.to(dtype)


def _cross_entropy(student: "StudentOutput") -> "Tensor":
    """-ln q(label) of each position, 0 where none counts; with its gradient."""
    import distill_kernels

    return distill_kernels.linear_sparse_divergence(
        student.hidden_BTD,
        student.head,
        student.labels_BT.unsqueeze(-1),
        1.0,
        tail="sampled",
        labels=student.labels_BT,
        student_bias=student.bias_V,
        student_scale=student.scale,
        student_softcap=student.softcap,
        reduction="none",
    )
