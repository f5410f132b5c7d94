"""Definition: every loss of the benchmark written down from its definition, for autograd, in the dtype that is asked.

In float32 it is the provider "PyTorch" (what one writes without a library), in float64 the truth. It shares nothing
with the closed forms of `distill_kernels`, and a test holds it against the tests' own oracle.
"""

import math

import torch
import torch.nn.functional as F
from cases import IGNORED, Case, Inputs, slices
from torch import Tensor


def loss_of(case: Case, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Tensor:
    """The sum of the rows' losses, attached to the student's tensors. Rows that do not count are dropped first."""
    if inputs.labels is not None and case.masked:
        counted = (inputs.labels != IGNORED).nonzero().squeeze(1)
        inputs = _rows(inputs, counted)
    if case.op == "logits":
        assert inputs.student_logits is not None and inputs.teacher_logits is not None
        logits = inputs.student_logits
        return _mixed(case, logits, _dense(case, logits, inputs.teacher_logits, dtype), inputs.labels, dtype)
    assert inputs.student_hidden is not None and inputs.student_head is not None
    logits = inputs.student_hidden @ inputs.student_head.T
    if case.op == "sparse":
        assert inputs.token_ids is not None and inputs.values is not None
        return _mixed(
            case, logits, _sparse(case, logits, inputs.token_ids, inputs.values.to(dtype)), inputs.labels, dtype
        )
    assert inputs.teacher_hidden is not None and inputs.teacher_head is not None
    with torch.no_grad():
        teacher_logits = inputs.teacher_hidden @ inputs.teacher_head[: case.num_tokens].T
    return _mixed(case, logits, _dense(case, logits, teacher_logits, dtype), inputs.labels, dtype)


def truth_of(case: Case, inputs: Inputs) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradients in float64 from the same inputs, some hundred rows at a time.

    The gradient of very large logits is kept in float32: it is compared with one of 16 bits.
    """
    exact = {name: tensor.detach().double() for name, tensor in _tensors(inputs).items() if _is_head(name)}
    wanted = inputs.students()
    if "dhead" in wanted:
        exact["student_head"].requires_grad_()
    total, by_row = 0.0, []
    for rows in slices(case.num_rows, 256):
        part = {name: tensor[rows].detach() for name, tensor in _tensors(inputs).items() if not _is_head(name)}
        part = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in part.items()}
        for name in ("student_logits", "student_hidden"):
            if name in part and wanted:
                part[name].requires_grad_()
        loss = loss_of(case, Inputs(**part, **exact), torch.float64)
        total += loss.item()
        if wanted:
            loss.backward()
            student = part["student_logits"] if case.op == "logits" else part["student_hidden"]
            assert student.grad is not None
            by_row.append(student.grad.float() if case.num_rows * case.num_tokens > 2**28 else student.grad)
    gradients = {}
    if wanted:
        gradients["dlogits" if case.op == "logits" else "dhidden"] = torch.cat(by_row)
    if "dhead" in wanted:
        head_gradient = exact["student_head"].grad
        assert head_gradient is not None
        gradients["dhead"] = head_gradient
    return total, gradients


def _tensors(inputs: Inputs) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in vars(inputs).items() if tensor is not None}


def _is_head(name: str) -> bool:
    return name.endswith("_head")


def _rows(inputs: Inputs, counted: Tensor) -> Inputs:
    tensors = _tensors(inputs).items()
    return Inputs(**{name: tensor if _is_head(name) else tensor[counted] for name, tensor in tensors})


def _log_softmax(logits: Tensor, scale: float, softcap: float | None, temperature: float, dtype: torch.dtype) -> Tensor:
    if scale != 1 or softcap is not None or temperature != 1:
        logits = logits.to(dtype)
    if scale != 1:
        logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if temperature != 1:
        logits = logits / temperature
    return F.log_softmax(logits, -1, dtype=dtype)


def _student(case: Case, logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    options = case.options
    return _log_softmax(logits, options.get("student_scale", 1.0), options.get("student_softcap"), temperature, dtype)


def _dense(case: Case, logits: Tensor, teacher_logits: Tensor, dtype: torch.dtype) -> Tensor:
    options = case.options
    temperature = options.get("temperature", 1.0)
    log_q = _student(case, logits, temperature, dtype)
    with torch.no_grad():
        scale, softcap = options.get("teacher_scale", 1.0), options.get("teacher_softcap")
        log_p = _log_softmax(teacher_logits, scale, softcap, temperature, dtype)
    return _divergence(case.kind, log_q, log_p, options.get("beta", 0.5), options.get("alpha", 0.1)).sum()


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return F.kl_div(log_b, log_a, reduction="none", log_target=True).sum(-1)


def _divergence(kind: str, log_q: Tensor, log_p: Tensor, beta: float, alpha: float) -> Tensor:
    """D(p, q) of each row."""

    def mixture(weight: float) -> Tensor:
        return torch.logaddexp(log_p + math.log(weight), log_q + math.log(1 - weight))

    match kind:
        case "forward_kl":
            return _kl(log_p, log_q)
        case "reverse_kl":
            return _kl(log_q, log_p)
        case "jsd":
            log_m = mixture(beta)
            return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)
        case "skew_forward_kl":
            return _kl(log_p, mixture(alpha))
        case "skew_reverse_kl":
            return _kl(log_q, mixture(1 - alpha))
        case "tvd":
            return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    raise AssertionError(kind)


def _sparse(case: Case, logits: Tensor, token_ids: Tensor, values: Tensor) -> Tensor:
    """Tail "sampled", or "bucket" for the divergence over the ids and one token more; every id is there, no -1."""
    log_q, ids = _student(case, logits, case.options.get("temperature", 1.0), values.dtype), token_ids.long()
    log_q_kept = log_q.gather(-1, ids)
    if case.tail == "sampled":
        return -(values * log_q_kept).sum()
    rest = log_q.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    log_rest = torch.log1p(-values.double().exp().sum(-1, keepdim=True)).to(values.dtype)
    log_q_kept, log_p_kept = torch.cat([log_q_kept, rest], -1), torch.cat([values, log_rest], -1)
    return _divergence(case.kind, log_q_kept, log_p_kept, 0.5, 0.1).sum()


def _mixed(case: Case, logits: Tensor, divergence: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
    hard_weight, temperature = case.options.get("hard_weight", 0.0), case.options.get("temperature", 1.0)
    loss = (1 - hard_weight) * temperature**2 * divergence
    if hard_weight:
        loss = loss + hard_weight * F.nll_loss(_student(case, logits, 1.0, dtype), labels, reduction="sum")
    return loss
