"""Loss and gradient of rows of student logits against K token ids per row: a top-k teacher, or weighted samples.

C rows of one chunk, N rows of one block, V vocabulary, K ids per row (-1 pads).

    tail          loss                                       gradient off the ids     on id k
    bucket        D over K + 1 buckets, the last the rest     q_i g_rest / q_rest      g_k of the closed form
    zero          sum p_k (ln p_k - ln q_k)                   P q_i                    P q_k - p_k     P = sum p_k
    renormalize   the same with p_k / P                       q_i                      q_k - p_k / P
    uniform       forward KL, the rest spread evenly: p_u     q_i - p_u                q_k - p_k
    sampled       -sum w_k ln q_k                             W q_i                    W q_k - w_k     W = sum w_k

Source: field practice for top-k; sampled: arXiv:2503.16870. The bucket's closed form is ours: the derivative of any
function of bucket masses is the bucket's own, shared among its tokens in proportion to their probability.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_kernels.arguments import REPEATED_IDS, repeats
from distill_kernels.closed_forms import FORMS
from distill_kernels.columns import WHOLE, Whole
from distill_kernels.implementation import runs_triton
from distill_kernels.labelled import cross_entropy, mixed_gradient, mixed_loss
from distill_kernels.settings import Settings
from distill_kernels.softened import Softened, Workspace, soften


@dataclass(frozen=True)
class Kept:
    """What the teacher said about one block's rows; absent ids point at token 0 with mass 0."""

    ids_NK: Tensor
    present_NK: Tensor
    logprobs_NK: Tensor
    """0 where absent. For `sampled` unused."""
    mass_NK: Tensor
    """Probabilities, or the samples' weights; 0 where absent."""
    any_others_N1: Tensor
    """Whether the vocabulary has tokens off the ids."""
    rest_logprob_N1: Tensor | None
    """Log of the others' probability where the teacher told it; None: it is what the ids leave over."""


def sparse_rows(
    student_CV: Tensor,
    token_ids_CK: Tensor,
    values: Tensor,
    tail: str,
    labels_C: Tensor | None,
    weight_C: Tensor | None,
    settings: Settings,
    workspace: Workspace,
    gradient_CV: Tensor | None = None,
) -> Tensor:
    """The loss of each row in nats, `[C]`; `gradient_CV` as for `dense_rows`. `student_CV` may be written over.

    `values` are `[C, K]`, or for the tail "bucket" `[C, K + 1]` where the last is the rest's log-probability.
    """
    if isinstance(workspace.columns, Whole) and runs_triton(student_CV):
        from distill_kernels import triton_sparse

        rest = (tail, labels_C, weight_C, settings, gradient_CV)
        loss_C = triton_sparse.sparse_rows(student_CV, token_ids_CK, values, *rest)
        # the kernel sees to the other tails
        return _nan_where_ids_repeat(loss_C, token_ids_CK) if tail in ("zero", "renormalize") else loss_C
    loss_C = torch.empty(len(student_CV), dtype=workspace.dtype, device=student_CV.device)
    for start in range(0, len(student_CV), workspace.num_rows):
        block = slice(start, start + workspace.num_rows)
        labels_N, weight_N = (None if rows is None else rows[block] for rows in (labels_C, weight_C))
        gradient_NV = None if gradient_CV is None else gradient_CV[block]
        student = soften(
            student_CV[block],
            settings.student_scale,
            settings.student_softcap,
            settings.temperature,
            workspace,
            "student",
            want_slope=gradient_NV is not None,
        )
        labelled = None
        if labels_N is not None and settings.hard_weight > 0:
            labelled = cross_entropy(student, student_CV[block], labels_N, settings, workspace)
        num_tokens = workspace.columns.count(student_CV)
        kept = _kept(token_ids_CK[block], values[block], tail, num_tokens, workspace.dtype)
        loss_N, by_softmax_NV = _bucket(student, kept, settings) if tail == "bucket" else _linear(student, kept, tail)
        # masking what has no mass must not hide a NaN that was there before
        loss_N = loss_N + 0.0 * student.log_partition_N1.squeeze(-1)
        loss_C[block] = mixed_loss(loss_N, labelled, weight_N, settings)
        if gradient_NV is not None:
            gradient_NV.copy_(mixed_gradient(by_softmax_NV, student, labelled, weight_N, settings))
    if student_CV.device.type == "cpu":
        return loss_C
    # ids on an accelerator could not be read before
    loss_C = loss_C.masked_fill((token_ids_CK < -1).any(-1), math.nan)
    return loss_C if tail == "sampled" else _nan_where_ids_repeat(loss_C, token_ids_CK)


def _nan_where_ids_repeat(loss_C: Tensor, token_ids_CK: Tensor) -> Tensor:
    return loss_C.masked_fill(repeats(token_ids_CK), math.nan)


def _kept(token_ids_NK: Tensor, values: Tensor, tail: str, num_tokens: int, dtype: torch.dtype) -> Kept:
    """`values` are `[N, K]`, or `[N, K + 1]` where the last is the rest's log-probability."""
    num_ids = token_ids_NK.shape[1]
    present_NK = token_ids_NK >= 0
    ids_NK = token_ids_NK.clamp(min=0).long()
    values_NK = values[:, :num_ids].to(dtype).masked_fill(~present_NK, 0.0)
    any_others_N1 = present_NK.sum(-1, keepdim=True) < num_tokens
    if tail == "sampled":
        return Kept(ids_NK, present_NK, values_NK, values_NK, any_others_N1, None)
    mass_NK = values_NK.exp().masked_fill_(~present_NK, 0.0)
    total_N1 = mass_NK.sum(-1, keepdim=True)
    rest_N1 = values[:, num_ids:].to(dtype) if values.shape[1] > num_ids else None
    if rest_N1 is not None:
        total_N1 = total_N1 + rest_N1.exp() * any_others_N1
    # Log-probabilities that were stored in 16 bits may add up to a little more than 1, and no tail can repair that.
    divisor_N1 = total_N1 if tail == "renormalize" else total_N1.clamp(min=1.0)
    if tail != "zero":
        mass_NK = mass_NK / divisor_N1
        values_NK = values_NK - divisor_N1.log()
        rest_N1 = None if rest_N1 is None else rest_N1 - divisor_N1.log()
    return Kept(ids_NK, present_NK, values_NK, mass_NK, any_others_N1, rest_N1)


def _linear(student: Softened, kept: Kept, tail: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the tails whose loss is linear in the student's log-probabilities."""
    q_NV, columns = student.probabilities_NV, student.columns
    log_q_NK = columns.take(student.shifted_NV, kept.ids_NK) - student.log_partition_N1
    log_ratio_NK = -log_q_NK if tail == "sampled" else kept.logprobs_NK - log_q_NK
    loss_N = (kept.mass_NK * log_ratio_NK).masked_fill_(kept.mass_NK == 0, 0.0).sum(-1)
    total_N1 = kept.mass_NK.sum(-1, keepdim=True)
    subtract_NK = kept.mass_NK
    if tail == "uniform":
        num_others_N1 = columns.count(q_NV) - kept.present_NK.sum(-1, keepdim=True)
        tail_N1 = (1 - total_N1).clamp_(min=0.0).masked_fill_(num_others_N1 == 0, 0.0)
        each_N1 = tail_N1 / num_others_N1.clamp(min=1)
        (others_N1,) = columns.total(_sum_of_others(student, kept))
        others_N1 = others_N1 - student.log_partition_N1 * num_others_N1
        tail_loss_N1 = torch.xlogy(tail_N1, each_N1) - each_N1 * others_N1
        # 0 * -inf: nothing is spread, so nothing is lost where the student has a probability of zero
        loss_N = loss_N + tail_loss_N1.masked_fill_(each_N1 == 0, 0.0).squeeze(-1)
        q_NV.sub_(each_N1)
        subtract_NK = (kept.mass_NK - each_N1).masked_fill_(~kept.present_NK, 0.0)
    elif tail != "renormalize":
        q_NV.mul_(total_N1)
    return loss_N, columns.add_(q_NV, kept.ids_NK, subtract_NK.neg())


def _sum_of_others(student: Softened, kept: Kept) -> Tensor:
    """Sum of the shifted logits off the ids, of the tokens held here, `[N, 1]`; writes over the shifted logits."""
    shifted_NV = student.shifted_NV
    if not shifted_NV.shape[-1]:
        return shifted_NV.sum(-1, keepdim=True)
    places_NK, here_NK = student.columns.locate(kept.ids_NK)
    present_NK = kept.present_NK if here_NK is None else kept.present_NK & here_NK
    # an id outside makes the row's loss NaN elsewhere; looked up, it would end a GPU's process
    places_NK = places_NK.clamp(max=shifted_NV.shape[-1] - 1)
    has_ids_N1 = present_NK.any(-1, keepdim=True)
    first_N1 = places_NK.gather(-1, present_NK.int().argmax(-1, keepdim=True))
    places_NK = torch.where(present_NK, places_NK, first_N1)
    # stored, not subtracted: a kept token may have a logit of -inf
    values_NK = shifted_NV.gather(-1, places_NK).masked_fill_(has_ids_N1, 0.0)
    return shifted_NV.scatter_(-1, places_NK, values_NK).sum(-1, keepdim=True)


def _bucket(student: Softened, kept: Kept, settings: Settings) -> tuple[Tensor, Tensor]:
    """Loss and gradient of any divergence over the K kept tokens and one bucket for all the others."""
    q_NV, columns = student.probabilities_NV, student.columns
    tiny = torch.finfo(q_NV.dtype).tiny
    q_NK = columns.take(q_NV, kept.ids_NK).masked_fill_(~kept.present_NK, 0.0)
    # x - x is exactly 0, so the sum is the others' alone: 1 - sum(q_k) has no digits left once the student is sure
    columns.add_(q_NV, kept.ids_NK, q_NK.neg())
    if q_NV.device.type == "cpu" and isinstance(columns, Whole):
        _refuse_repeated_ids(q_NV, kept)
    (q_rest_N1,) = columns.total(q_NV.sum(-1, keepdim=True))
    q_rest_N1 = q_rest_N1.clamp(min=tiny) * kept.any_others_N1
    if kept.rest_logprob_N1 is None:
        p_rest_N1 = (1 - kept.mass_NK.sum(-1, keepdim=True)).clamp_(min=tiny)
        log_p_rest_N1 = p_rest_N1.log()
    else:
        log_p_rest_N1 = kept.rest_logprob_N1.clamp(min=math.log(tiny))
        p_rest_N1 = log_p_rest_N1.exp()
    p_rest_N1 = p_rest_N1 * kept.any_others_N1

    log_q_NK = columns.take(student.shifted_NV, kept.ids_NK) - student.log_partition_N1
    ratio_NK = (kept.logprobs_NK - log_q_NK).masked_fill_(~kept.present_NK, 0.0)
    ratio_rest_N1 = (log_p_rest_N1 - q_rest_N1.log()).masked_fill_(~kept.any_others_N1, 0.0)
    q_NB, p_NB, ratio_NB = (
        torch.cat(pair, -1) for pair in ((q_NK, q_rest_N1), (kept.mass_NK, p_rest_N1), (ratio_NK, ratio_rest_N1))
    )
    loss_N, gradient_NB = FORMS[settings.kind](q_NB, p_NB, ratio_NB, settings, True, WHOLE.total)
    gradient_NK, gradient_rest_N1 = gradient_NB[:, :-1], gradient_NB[:, -1:]
    q_NV.mul_(gradient_rest_N1 / q_rest_N1.clamp(min=tiny))
    return loss_N, columns.add_(q_NV, kept.ids_NK, gradient_NK.masked_fill(~kept.present_NK, 0.0))


def _refuse_repeated_ids(others_NV: Tensor, kept: Kept) -> None:
    left_NK = others_NV.gather(-1, kept.ids_NK)
    if bool(((left_NK < 0) & kept.present_NK).any()):
        raise ValueError(REPEATED_IDS)
