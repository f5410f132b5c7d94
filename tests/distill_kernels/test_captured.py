"""While a CUDA graph is captured no row can be left out, for nobody can wait for their number: they weigh nothing.

Capture itself needs a GPU (test_gpu.py). Here: the same results on a CPU, and with tensors of the meta device, which
have no numbers, that nothing asks for one.
"""

import pytest
import torch
from distill_kernels import LowRankHead, arguments, divergence, linear_divergence, linear_sparse_divergence
from distill_kernels.calls import divergence_call, linear_call, sparse_call
from distill_kernels.settings import KINDS, TAILS
from distill_kernels.student import Student

N, V = 9, 23
HARD = {"hard_weight": 0.25, "temperature": 2.0}
PLAIN = {"beta": 0.5, "alpha": 0.1, "temperature": 1.0, "hard_weight": 0.0}
PLAIN |= {"student_scale": 1.0, "student_softcap": 6.0, "teacher_scale": 1.0, "teacher_softcap": None}


@pytest.fixture
def captured(monkeypatch):
    """From now on, as if a graph were captured."""
    return lambda: monkeypatch.setattr(arguments, "is_captured", lambda device: True)


def everything():
    """Inputs whose rows that do not count hold what no arithmetic survives."""
    labels = torch.randint(0, V, (N,))
    labels[::3] = -100
    lost = labels < 0
    hidden, teacher_hidden = (torch.randn(N, size, dtype=torch.float64) for size in (8, 6))
    logits, teacher_logits = (torch.randn(N, V, dtype=torch.float64) for _ in range(2))
    for tensor in (hidden, teacher_hidden, logits, teacher_logits):
        tensor[lost] = torch.nan
    ids = torch.stack([torch.randperm(V)[:4] for _ in range(N)])
    values = torch.randn(N, V, dtype=torch.float64).log_softmax(-1).gather(1, ids)
    ids[lost], values[lost] = 10**6, torch.nan
    return {
        "labels": labels,
        "hidden": hidden,
        "logits": logits,
        "head": torch.randn(V, 8, dtype=torch.float64),
        "A": torch.randn(2, 8, dtype=torch.float64),
        "B": torch.randn(V, 2, dtype=torch.float64),
        "teacher": (teacher_hidden, torch.randn(V, 6, dtype=torch.float64)),
        "teacher_logits": teacher_logits,
        "sparse": (ids, values),
    }


def results(inputs, reduction):
    """Loss and gradients of every op with every kind and tail."""
    logits, hidden, head, A, B = (
        inputs[name].detach().requires_grad_() for name in ("logits", "hidden", "head", "A", "B")
    )
    low_rank = LowRankHead(weight=head.detach(), lora_A=A, lora_B=B, scale=0.5)
    options = {"labels": inputs["labels"], "reduction": reduction, **HARD}
    ids, values = inputs["sparse"]
    for kind in KINDS:
        yield divergence(logits, inputs["teacher_logits"], kind, **options), [logits]
        linear = {**options, "chunk_bytes": 4 * V * 16}
        yield linear_divergence(hidden, head, *inputs["teacher"], kind, **linear), [hidden, head]
        yield linear_divergence(hidden, low_rank, *inputs["teacher"], kind, **linear), [hidden, A, B]
        yield linear_sparse_divergence(hidden, head, ids, values, kind, **linear), [hidden, head]
    for tail in TAILS:
        weights = values.exp() if tail == "sampled" else values
        yield linear_sparse_divergence(hidden, head, ids, weights, tail=tail, **options), [hidden, head]
    yield linear_sparse_divergence(hidden, head, ids[:, :1], 1.0, tail="sampled", **options), [hidden, head]


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_rows_that_stay_weigh_nothing(captured, reduction):
    inputs = everything()
    upstream = torch.randn(N, dtype=torch.float64) if reduction == "none" else torch.tensor(3.0, dtype=torch.float64)
    expected = [(loss, torch.autograd.grad(loss, to, upstream)) for loss, to in results(inputs, reduction)]
    captured()
    found = [(loss, torch.autograd.grad(loss, to, upstream)) for loss, to in results(inputs, reduction)]
    assert len(found) == len(expected) == 4 * len(KINDS) + len(TAILS) + 1
    for (loss, gradients), (right, right_gradients) in zip(found, expected, strict=True):
        torch.testing.assert_close(loss, right, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients, right_gradients, rtol=1e-10, atol=1e-12)


def evaluated(kind, tail):
    """Loss and gradients as the ops evaluate them, of tensors without numbers."""

    def meta(*shape, dtype=torch.float32):
        return torch.empty(*shape, dtype=dtype, device="meta")

    labels, options = meta(N, dtype=torch.long), {name: HARD.get(name, value) for name, value in PLAIN.items()}
    options["kind"], rest = kind, (labels, meta(N), -100, "sum")
    low_rank = LowRankHead(weight=meta(V, 8), lora_A=meta(2, 8), lora_B=meta(V, 2), scale=0.5)
    ready = divergence_call(meta(N, V), meta(N, V), *rest, options)
    yield ready.evaluate([meta(N, V)], [True], None)
    for head in (low_rank, meta(V, 8)):
        student = Student.of(meta(N, 8), head, meta(V))
        products = (torch.float32, 4 * V * 8)  # no look at autocast, which meta does not have
        dense = linear_call(student, (meta(N, 6), meta(V, 6), None), *rest, *products, options)
        values = 1.0 if tail == "sampled" else meta(N, 4)
        sparse = sparse_call(student, meta(N, 4, dtype=torch.long), values, tail, *rest, *products, options)
        for call in (dense, sparse):
            yield call._evaluate(student, [tensor is not None for tensor in student.tensors], meta(N))


@pytest.mark.parametrize(("kind", "tail"), [(kind, "bucket") for kind in KINDS] + [("forward_kl", t) for t in TAILS])
def test_nothing_waits_for_a_number(captured, kind, tail):
    with pytest.raises(NotImplementedError, match="nonzero"):
        next(evaluated(kind, tail))
    captured()
    for loss, gradients in evaluated(kind, tail):
        assert loss.shape == (N,) and gradients[0].shape[0] == N
