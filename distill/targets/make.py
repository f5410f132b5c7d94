"""make(): a teacher's logits → targets of the kind that a store keeps."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from distill.errors import StageFailed
from distill.targets import RowTargets
from distill.targets.dense import DenseTargets
from distill.targets.frozen_head import FrozenHeadTargets
from distill.targets.layout import Layout
from distill.targets.next_token import NextTokenTargets
from distill.targets.sampled import SampledTargets
from distill.targets.sampling import systematic_draws
from distill.targets.top_k import TopKTargets

if TYPE_CHECKING:
    from torch import Tensor

# N positions, V vocabulary, K token ids kept, D the student's hidden size


def make(
    layout: Layout,
    logits_NV: "Tensor",
    next_N: "Tensor",
    *,
    uniform_N: "Tensor | None" = None,
    always_keep: Sequence[int] = (),
    head_VD: "Tensor | None" = None,
) -> RowTargets:
    """Targets of N positions, of one row or of several one after another.

    Args:
        logits_NV: float32, divided by the store's temperature; all V tokens of `layout.vocab_size`.
        next_N: int64, the token that the text goes on with.
        uniform_N: for "sampled", see `systematic_draws`.
        always_keep: for "top_k", token ids that every position keeps, besides the next one.
        head_VD: for "frozen_head", the student's.

    Raises:
        StageFailed: a position's logits are NaN, or none of them is finite.
    """
    import torch

    if layout.kind == "sampled":
        assert uniform_N is not None
        return _sampled(layout.kept, logits_NV, uniform_N)
    if layout.kind == "frozen_head":
        assert head_VD is not None
        return _frozen_head(logits_NV, head_VD)
    log_normaliser_N = torch.logsumexp(logits_NV, dim=-1)
    check_finite(log_normaliser_N)
    logprobs_NV = logits_NV - log_normaliser_N[:, None]
    match layout.kind:
        case "dense":
            return DenseTargets(_numpy(logprobs_NV))
        case "next":
            return NextTokenTargets(_numpy(logprobs_NV.gather(1, next_N[:, None])[:, 0]))
        case "top_k":
            return _top_k(layout.kept, logprobs_NV, log_normaliser_N, next_N, always_keep)


def _sampled(draws: int, logits_NV: "Tensor", uniform_N: "Tensor") -> SampledTargets:
    import torch

    probabilities_NV = torch.softmax(logits_NV, dim=-1)
    entropy_N = _entropy(logits_NV, probabilities_NV)
    drawn_ND = systematic_draws(probabilities_NV, uniform_N, draws)
    return SampledTargets.of_draws(drawn_ND.cpu().numpy(), _numpy(entropy_N))


def _frozen_head(logits_NV: "Tensor", head_VD: "Tensor") -> FrozenHeadTargets:
    import torch

    shared = min(len(head_VD), logits_NV.shape[1])  # padding of a vocabulary is no token
    logits_NV = logits_NV[:, :shared]
    probabilities_NV = torch.softmax(logits_NV, dim=-1)
    vectors_ND = probabilities_NV @ head_VD[:shared].float()
    return FrozenHeadTargets(_numpy(vectors_ND), _numpy(_entropy(logits_NV, probabilities_NV)))


def joined(parts: Sequence[RowTargets]) -> RowTargets:
    """Targets of one kind, the positions of all parts one after another."""
    whole: dict[str, np.ndarray] = {}
    for field in fields(parts[0]):
        arrays = [getattr(part, field.name) for part in parts]
        if field.name == "ends_S":  # each part counts from its own first entry
            before = np.cumsum([0, *(int(ends[-1]) if len(ends) else 0 for ends in arrays[:-1])])
            arrays = [ends + start for ends, start in zip(arrays, before, strict=True)]
        whole[field.name] = np.concatenate(arrays)
    return type(parts[0])(**whole)


def _top_k(
    K: int, logprobs_NV: "Tensor", log_normaliser_N: "Tensor", next_N: "Tensor", always_keep: Sequence[int]
) -> TopKTargets:
    """The K likeliest tokens, but for the least likely of them where a token that must be kept is not among them."""
    import torch

    must_NM = torch.cat([next_N[:, None], next_N.new_tensor(list(always_keep)).expand(len(next_N), -1)], dim=1)
    ranked_NV = logprobs_NV.scatter(1, must_NM, float("inf"))
    ids_NK = ranked_NV.topk(K, dim=1).indices
    # likeliest first, whatever had to be kept
    kept_NK, order_NK = logprobs_NV.gather(1, ids_NK).sort(dim=1, descending=True, stable=True)
    ids_NK = ids_NK.gather(1, order_NK)
    # summed itself: a tail of 1e-9 would drown in 1 - sum(p)
    rest_NV = logprobs_NV.scatter(1, ids_NK, float("-inf"))
    tail_N = torch.logsumexp(rest_NV, dim=1) if logprobs_NV.shape[1] > K else rest_NV[:, 0]
    next_logprob_N = logprobs_NV.gather(1, next_N[:, None])[:, 0]
    return TopKTargets(
        ids_NK.to(torch.int32).cpu().numpy(),
        _numpy(kept_NK),
        _numpy(tail_N),
        _numpy(next_logprob_N),
        _numpy(log_normaliser_N),
    )


def _entropy(logits_NV: "Tensor", probabilities_NV: "Tensor") -> "Tensor":
    """Of each row, in nats: ln Z - sum(p z), one pass over the logits where -sum(p ln p) takes an exponential more."""
    import torch

    highest = logits_NV.max(dim=-1, keepdim=True)
    log_normaliser_N = (highest.values - probabilities_NV.gather(1, highest.indices).log()).squeeze(1)
    check_finite(log_normaliser_N)
    # from the highest one: of large logits, the difference of two large numbers would have few digits
    mean_below_N = torch.linalg.vecdot(probabilities_NV, logits_NV) - highest.values.squeeze(1)
    if not torch.isfinite(mean_below_N).all():  # tokens that the teacher forbids: 0 * -inf
        below_NV = (logits_NV - highest.values).clamp(min=-1e4)
        mean_below_N = torch.linalg.vecdot(probabilities_NV, below_NV)
    return (log_normaliser_N - highest.values.squeeze(1) - mean_below_N).clamp(min=0.0)


def check_finite(values_N: "Tensor") -> None:
    """Raises StageFailed unless each row's highest logit, or log-normaliser, is finite: else it is no distribution."""
    if not values_N.isfinite().all():
        raise StageFailed(
            "The teacher's logits are not finite. Load it in another dtype (teacher.dtype=float32 or bfloat16), or "
            "look at its weights; nothing of this batch was stored."
        )


def _numpy(tensor: "Tensor") -> np.ndarray:
    return tensor.float().cpu().numpy()
