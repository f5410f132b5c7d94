"""The six divergences of two distributions, with their derivatives by the student's logits.

Every form takes the same arguments and returns `(loss_N, gradient_NV)`:

    q_NV     the student's probabilities; the gradient is written into this memory
    p_NV     the teacher's probabilities; only read
    r_NV     log p - log q; overwritten
    guarded  whether log-probabilities may be -inf. Unguarded is faster and gives NaN where guarding was needed.
    total    sums over the vocabulary from sums over these V tokens: `columns.Columns.total`, where a vocabulary is cut

float32 or float64. The gradient is by the logits that q is the softmax of (after the temperature). It follows from
g_i = r_i - q_i sum_j r_j, where r_i is the derivative by log q_i with every log q_i treated as free. None of the sums
takes the logarithm of a mixture: with d = log(weighted p / weighted q), log-ratios to the mixture are softplus(±d).

A KL is infinite where its second distribution is zero and its first is not; that row's loss is inf. The gradient of
the forward KL stays q - p there; the gradient of the reverse KL does not exist and is NaN.

Sources: KL: Hinton, Vinyals, Dean 2015, arXiv:1503.02531. JSD(beta): Agarwal et al. 2023, arXiv:2306.13649.
Skew KL: Ko et al. 2024, arXiv:2402.03898. The derivatives and their order of evaluation are ours.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from distill_kernels.settings import Settings
from distill_kernels.softened import LOG2_E

Total = Callable[..., tuple[Tensor, ...]]
"""Partial sums `[N]` -> their sums over the vocabulary, in the same order."""

# Up to this |offset|, a clamped log-ratio and its offset stay where exp2 does not overflow in float32.
_WIDEST_OFFSET = 30.0

# Beyond this |log-ratio|, log1p(exp(-d)) is below half a unit in the last place of the losses it is added to.
_CLAMP = {torch.float32: 17.0, torch.float64: 40.0}


def forward_kl(
    q_NV: Tensor, p_NV: Tensor, r_NV: Tensor, settings: Settings, guarded: bool, total: Total
) -> tuple[Tensor, Tensor]:
    """KL(p || q); the gradient is q - p."""
    if guarded:
        r_NV.masked_fill_(p_NV == 0, 0.0)
    (loss_N,) = total(r_NV.mul_(p_NV).sum(-1))
    return loss_N, q_NV.sub_(p_NV)


def reverse_kl(
    q_NV: Tensor, p_NV: Tensor, r_NV: Tensor, settings: Settings, guarded: bool, total: Total
) -> tuple[Tensor, Tensor]:
    """KL(q || p); the gradient is q (log q - log p - KL)."""
    if guarded:
        r_NV.masked_fill_(q_NV == 0, 0.0)
    (loss_N,) = total(r_NV.mul_(q_NV).sum(-1).neg_())
    return loss_N, q_NV.mul_(loss_N.neg().unsqueeze(-1)).sub_(r_NV)


def jsd(
    q_NV: Tensor, p_NV: Tensor, r_NV: Tensor, settings: Settings, guarded: bool, total: Total
) -> tuple[Tensor, Tensor]:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    log q - log m = -ln(1 - beta) - softplus(d) and log p - log m = r + the same, with d = r + ln(beta / (1 - beta)).
    The gradient is (1 - beta) q (log q - log m - KL(q || m)).
    """
    beta = settings.beta
    offset = math.log(beta) - math.log1p(-beta)
    softplus_NV = _centred_softplus(_clamp(r_NV, offset, guarded), offset, -math.log1p(-beta))
    teacher_N = r_NV.sub_(softplus_NV).mul_(p_NV).sum(-1)
    student_N = softplus_NV.mul_(q_NV).sum(-1).neg_()
    teacher_N, student_N = total(teacher_N, student_N)
    gradient_NV = q_NV.mul_(student_N.mul(beta - 1).unsqueeze(-1)).sub_(softplus_NV, alpha=1 - beta)
    return beta * teacher_N + (1 - beta) * student_N, gradient_NV


def skew_forward_kl(
    q_NV: Tensor, p_NV: Tensor, r_NV: Tensor, settings: Settings, guarded: bool, total: Total
) -> tuple[Tensor, Tensor]:
    """KL(p || m) with m = alpha p + (1 - alpha) q; the gradient is q sum(p w) - p w with w = (1 - alpha) q / m."""
    alpha = settings.alpha
    offset = math.log1p(-alpha) - math.log(alpha)
    _clamp(r_NV, offset, guarded).neg_()
    softplus_NV = _centred_softplus(r_NV, offset, -math.log(alpha))
    share_NV = r_NV.add_(offset).sigmoid_().mul_(p_NV)
    loss_N, share_N = total(softplus_NV.mul_(p_NV).sum(-1).neg_(), share_NV.sum(-1))
    return loss_N, q_NV.mul_(share_N.unsqueeze(-1)).sub_(share_NV)


def skew_reverse_kl(
    q_NV: Tensor, p_NV: Tensor, r_NV: Tensor, settings: Settings, guarded: bool, total: Total
) -> tuple[Tensor, Tensor]:
    """KL(q || m) with m = (1 - alpha) p + alpha q.

    The gradient is q (log q - log m - w - KL + sum(q w)) with w = alpha q / m.
    """
    alpha = settings.alpha
    offset = math.log1p(-alpha) - math.log(alpha)
    softplus_NV = _centred_softplus(_clamp(r_NV, offset, guarded), offset, -math.log(alpha)).mul_(q_NV)
    share_NV = r_NV.add_(offset).neg_().sigmoid_().mul_(q_NV)
    loss_N, share_N = total(softplus_NV.sum(-1).neg_(), share_NV.sum(-1))
    mean_N = share_N - loss_N
    return loss_N, q_NV.mul_(mean_N.unsqueeze(-1)).sub_(softplus_NV).sub_(share_NV)


def tvd(
    q_NV: Tensor, p_NV: Tensor, r_NV: Tensor, settings: Settings, guarded: bool, total: Total
) -> tuple[Tensor, Tensor]:
    """Half the sum of |p - q|; the gradient is q (s - sum(q s)) / 2 with s = sign(q - p), which is 0 at a tie."""
    difference_NV = torch.sub(q_NV, p_NV, out=r_NV)
    loss_N = difference_NV.abs().sum(-1).mul_(0.5)
    signed_NV = difference_NV.sign_().mul_(q_NV)
    loss_N, mean_N = total(loss_N, signed_NV.sum(-1))
    return loss_N, q_NV.mul_(mean_N.neg().unsqueeze(-1)).add_(signed_NV).mul_(0.5)


def _clamp(r_NV: Tensor, offset: float, guarded: bool) -> Tensor:
    """Log-ratios cut where one side of the mixture has vanished; NaN (both sides -inf) becomes 0, weighted by 0."""
    bound = _CLAMP[r_NV.dtype] + abs(offset)
    if guarded:
        r_NV.nan_to_num_(nan=0.0)
    return r_NV.clamp_(-bound, bound)


def _centred_softplus(r_NV: Tensor, offset: float, at_zero: float) -> Tensor:
    """softplus(r + offset) - softplus(offset): small where p is close to q, so no digits are lost to the constant."""
    shifted_NV = r_NV + offset
    if abs(offset) > _WIDEST_OFFSET:  # a weight within 1e-13 of 0 or 1
        # torch's default threshold of 20 would cost float64 half its digits; its stub does not list `out`
        torch.nn.functional.softplus(shifted_NV, 1.0, 80.0, out=shifted_NV)  # pyright: ignore[reportCallIssue]
    else:  # in two thirds of softplus' time, for its exp
        shifted_NV.mul_(LOG2_E).exp2_().log1p_()
    return shifted_NV.sub_(at_zero)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Settings, bool, Total], tuple[Tensor, Tensor]]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "tvd": tvd,
}
