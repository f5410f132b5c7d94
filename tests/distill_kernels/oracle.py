"""The losses written down from their definitions, in float64, for autograd: no closed form, no chunk, no trick."""

import math

import torch
from torch import Tensor


def log_softmax_of(logits: Tensor, scale: float, softcap: float | None, temperature: float) -> Tensor:
    logits = logits.double() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / temperature
    return logits - torch.logsumexp(logits, -1, keepdim=True)


def divergence_of(kind: str, log_q: Tensor, log_p: Tensor, beta: float = 0.5, alpha: float = 0.1) -> Tensor:
    """D(p, q) over the last dimension; log-probabilities may be -inf, where 0 ln 0 = 0."""

    def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
        empty = torch.isneginf(log_a)
        difference = log_a.masked_fill(empty, 0.0) - log_b.masked_fill(empty, 0.0)
        return (log_a.exp() * difference).sum(-1)

    def mixture(weight_of_p: float) -> Tensor:
        weighted = (log_p + math.log(weight_of_p), log_q + math.log(1 - weight_of_p))
        empty = torch.isneginf(log_p) & torch.isneginf(log_q)
        pair = torch.stack([part.masked_fill(empty, 0.0) for part in weighted])
        return torch.logsumexp(pair, 0).masked_fill(empty, -math.inf)

    match kind:
        case "forward_kl":
            return kl(log_p, log_q)
        case "reverse_kl":
            return kl(log_q, log_p)
        case "jsd":
            return beta * kl(log_p, mixture(beta)) + (1 - beta) * kl(log_q, mixture(beta))
        case "skew_forward_kl":
            return kl(log_p, mixture(alpha))
        case "skew_reverse_kl":
            return kl(log_q, mixture(1 - alpha))
        case "tvd":
            return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    raise AssertionError(kind)


def mixed(
    divergence: Tensor,
    student_logits: Tensor,
    *,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    student_scale: float = 1.0,
    student_softcap: float | None = None,
) -> Tensor:
    """Each row's loss from its divergence; `student_logits` are those of the shared vocabulary."""
    loss = (1 - hard_weight) * temperature**2 * divergence
    if hard_weight:
        assert labels is not None
        hard = log_softmax_of(student_logits, student_scale, student_softcap, 1.0)
        loss = loss - hard_weight * hard.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    if row_weight is not None:
        loss = loss * row_weight.double()
    return loss if labels is None else loss.masked_fill(labels == ignore_index, 0.0)


def logits_of(
    hidden: Tensor, head: Tensor, bias: Tensor | None, low_rank: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """(logits, the leaves of their own that they are made of); a low-rank part (A, B) counts half."""
    tensors = [hidden, head, bias, *(low_rank or ())]
    exact = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    whole = exact[1] if low_rank is None else exact[1] + 0.5 * exact[4] @ exact[3]
    logits = exact[0] @ whole.T
    return logits if bias is None else logits + exact[2], [t for t in exact if t is not None and t.requires_grad]


def dense_loss(student_logits: Tensor, teacher_logits: Tensor, kind: str, **options) -> Tensor:
    """`divergence(..., reduction="none")`, of float64 logits."""
    beta, alpha = options.pop("beta", 0.5), options.pop("alpha", 0.1)
    teacher_scale, teacher_softcap = options.pop("teacher_scale", 1.0), options.pop("teacher_softcap", None)
    temperature = options.get("temperature", 1.0)
    shared = min(student_logits.shape[-1], teacher_logits.shape[-1])
    student_logits, teacher_logits = student_logits[..., :shared], teacher_logits[..., :shared]
    scale, softcap = options.get("student_scale", 1.0), options.get("student_softcap")
    log_q = log_softmax_of(student_logits, scale, softcap, temperature)
    log_p = log_softmax_of(teacher_logits, teacher_scale, teacher_softcap, temperature)
    return mixed(divergence_of(kind, log_q, log_p, beta, alpha), student_logits, **options)


def sparse_loss(student_logits: Tensor, token_ids: Tensor, values: Tensor, kind: str, tail: str, **options) -> Tensor:
    """`linear_sparse_divergence(..., reduction="none")` of float64 logits, one row after the other."""
    beta, alpha = options.pop("beta", 0.5), options.pop("alpha", 0.1)
    temperature = options.get("temperature", 1.0)
    scale, softcap = options.get("student_scale", 1.0), options.get("student_softcap")
    log_q = log_softmax_of(student_logits, scale, softcap, temperature)
    rows = []
    for log_q_V, ids_K, values_K in zip(log_q, token_ids.long(), values.double(), strict=True):
        ids, kept = ids_K[ids_K >= 0], values_K[: len(ids_K)][ids_K >= 0]
        others = torch.ones(len(log_q_V), dtype=torch.bool)
        others[ids] = False
        told = len(values_K) > len(ids_K)
        rest = values_K[-1].exp() if told else (1 - kept.exp().sum()).clamp(min=0.0)
        match tail:
            case "sampled":
                row = -(kept * log_q_V[ids]).sum()
            case "zero":
                row = (kept.exp() * (kept - log_q_V[ids])).sum()
            case "renormalize":
                kept = kept - torch.logsumexp(kept, 0)
                row = (kept.exp() * (kept - log_q_V[ids])).sum()
            case "uniform":
                log_p = torch.full_like(log_q_V, -math.inf).index_put((ids,), kept)
                row = divergence_of(kind, log_q_V, log_p.masked_fill(others, torch.log(rest / others.sum())))
            case "bucket" if others.any():
                log_q_B = torch.cat([log_q_V[ids], torch.logsumexp(log_q_V[others], 0)[None]])
                rest = values_K[-1:] if told else rest.log()[None]
                row = divergence_of(kind, log_q_B, torch.cat([kept, rest]), beta, alpha)
            case _:
                row = divergence_of(kind, log_q_V[ids], kept, beta, alpha)
        rows.append(row)
    return mixed(torch.stack(rows), student_logits, **options)
