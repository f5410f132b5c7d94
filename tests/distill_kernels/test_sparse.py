"""Sparse teachers against float64 autograd of their definition: every tail, every kind, pads, extremes."""

import math

import pytest
import torch
from distill_kernels import divergence, linear_sparse_divergence
from distill_kernels.settings import KINDS
from distill_kernels.softened import Softened
from distill_kernels.sparse import Kept, _sum_of_others
from oracle import sparse_loss

TAILS = [("bucket", kind) for kind in KINDS]
TAILS += [(tail, "forward_kl") for tail in ("zero", "renormalize", "uniform", "sampled")]
TOLD = [("told", kind) for kind in KINDS]  # "bucket" with values of the rest's own
OPTIONS = [{}, {"temperature": 2.0, "hard_weight": 0.3, "student_softcap": 6.0, "student_scale": 1.4}]


def case(num_rows=6, num_tokens=21, num_kept=5, dtype=torch.float64, tail="bucket"):
    """Student logits, ids with pads, and values that fit the tail."""
    student = (torch.randn(num_rows, num_tokens) * 2).to(dtype).requires_grad_()
    logprobs = (torch.randn(num_rows, num_tokens).double() * 2).log_softmax(-1)
    ids = torch.stack([torch.randperm(num_tokens)[:num_kept] for _ in range(num_rows)])
    values = logprobs.gather(1, ids).to(dtype)
    if num_kept > 1:
        ids[1, -1] = ids[2, 0] = -1
        ids[3, 1:] = -1
    if tail == "sampled":
        values = torch.rand(num_rows, num_kept, dtype=torch.float64).to(dtype)
    if tail == "told":
        off_ids = torch.ones(num_rows, num_tokens + 1, dtype=torch.bool).scatter(1, ids % (num_tokens + 1), False)
        others = logprobs.masked_fill(~off_ids[:, :-1], -math.inf).logsumexp(1, keepdim=True)
        values = torch.cat([values, others.to(dtype)], 1)
    return student, ids.int(), values


def loss_of(student, ids, values, kind="forward_kl", tail="bucket", **options):
    """The op on ready logits: they are hidden states before an identity head."""
    options["tail"] = "bucket" if tail == "told" else tail
    return linear_sparse_divergence(
        student, torch.eye(student.shape[-1]).to(student.dtype), ids, values, kind, **options
    )


def truth(student, ids, values, kind, tail, **options):
    tail = "bucket" if tail == "told" else tail
    exact = student.detach().double().requires_grad_()
    loss = sparse_loss(exact, ids, values, kind, tail, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), exact)
    return loss.detach(), gradient


@pytest.mark.parametrize(("tail", "kind"), TAILS + TOLD)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_kept", [1, 5, 20])
def test_float64_is_the_definition(tail, kind, options, num_kept):
    student, ids, values = case(num_kept=num_kept, tail=tail)
    labels, weight = torch.randint(0, 21, (6,)), torch.rand(6)
    labels[4] = -100
    options = {**options, "labels": labels, "row_weight": weight}
    loss = loss_of(student, ids, values, kind, tail=tail, **options)
    expected, gradient = truth(student, ids, values, kind, tail, **options)
    torch.testing.assert_close(loss, expected.sum(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("tail", "kind"), TAILS + TOLD)
def test_float32_loses_no_more_than_its_last_digits(tail, kind):
    student, ids, values = case(num_tokens=5003, num_kept=64, dtype=torch.float32, tail=tail)
    loss = loss_of(student, ids, values, kind, tail=tail, reduction="none")
    expected, gradient = truth(student, ids, values, kind, tail)
    assert ((loss - expected).abs() <= 2e-6 * (1 + expected)).all(), (loss - expected).abs().max()
    found = torch.autograd.grad(loss.sum(), student)[0]
    assert ((found - gradient).abs() <= 1e-6 + 2e-6 * expected.clamp(min=1)[:, None]).all()


@pytest.mark.parametrize(("tail", "kind"), TAILS + TOLD)
def test_gradcheck(tail, kind):
    student, ids, values = case(num_rows=4, num_tokens=7, num_kept=3, tail=tail)
    torch.autograd.gradcheck(lambda logits: loss_of(logits, ids, values, kind, tail=tail, temperature=1.4), student)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_kept", [10, 11])
def test_the_bucket_is_exact_when_it_holds_at_most_one_token(kind, num_kept):
    student, teacher = torch.randn(4, 11, dtype=torch.float64), torch.randn(4, 11, dtype=torch.float64)
    values, ids = teacher.log_softmax(-1).topk(num_kept)
    student.requires_grad_()
    sparse, dense = loss_of(student, ids.int(), values, kind), divergence(student, teacher, kind)
    torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-12)
    pair = [torch.autograd.grad(loss, student)[0] for loss in (sparse, dense)]
    torch.testing.assert_close(*pair, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rest_that_is_told_counts_where_float32_has_no_digits_left(kind):
    """A teacher as sharp as e^-20: what the kept probabilities leave over is rounding, here nothing at all."""
    teacher = torch.full((1, 40), -26.0, dtype=torch.float64)
    teacher[0, 4], teacher[0, 7] = 0.0, -18.0
    student, ids = torch.randn(1, 40, requires_grad=True), torch.tensor([[4, 7]])
    logprobs = teacher.log_softmax(-1)
    rest = logprobs.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    values = torch.cat([logprobs.gather(1, ids), rest], 1).float()
    assert (1 - values[:, :2].exp().sum()) == 0 and 1e-10 < rest.exp() < 1e-9
    loss = loss_of(student, ids, values, kind)
    expected, gradient = truth(student, ids, values.double(), kind, "told")
    assert (loss - expected).abs() <= 2e-6 * (1 + expected)
    found = torch.autograd.grad(loss, student)[0]
    assert (found - gradient).abs().max() <= 2e-6 * expected.clamp(min=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_sure_keeps_a_finite_gradient(kind):
    student = torch.zeros(3, 30)
    student[0, 4], student[1, 4], student[2, 9] = 30.0, 300.0, 300.0
    student.requires_grad_()
    ids, values = torch.tensor([[4, 2]] * 3), torch.tensor([[0.6, 0.3]] * 3).log()
    loss = loss_of(student, ids, values, kind, reduction="none")
    (found,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all() and found.isfinite().all()
    expected, gradient = truth(student[:1], ids[:1], values[:1], kind, "bucket")
    assert (loss[:1] - expected).abs() <= 2e-6 * (1 + expected)
    assert (found[:1] - gradient).abs().max() <= 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_sure_has_no_tail(kind):
    student = torch.randn(2, 30, requires_grad=True)
    ids, values = torch.tensor([[4, 2]] * 2), torch.tensor([[0.0, -math.inf]] * 2)
    loss = loss_of(student, ids, values, kind, reduction="none")
    if kind == "reverse_kl":
        assert torch.isposinf(loss).all()
        return
    expected, gradient = truth(student, ids, values, kind, "bucket")
    assert ((loss - expected).abs() <= 2e-6 * (1 + expected)).all()
    assert (torch.autograd.grad(loss.sum(), student)[0] - gradient).abs().max() <= 2e-6


@pytest.mark.parametrize(("tail", "kind"), TAILS)
def test_masked_student_logits_and_poison(tail, kind):
    student, ids, values = case(num_tokens=40, dtype=torch.float32, tail=tail)
    clean = loss_of(student, ids, values, kind, tail=tail, reduction="none")
    logits = student.detach().clone()
    logits[2, 7] = math.nan
    loss = divergence_rows(logits, ids, values, kind, tail)
    assert loss.isnan().tolist() == [False, False, True, False, False, False]
    torch.testing.assert_close(loss[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])
    if tail == "uniform":
        return
    free = next(token for token in range(40) if token not in ids[0].tolist())
    logits = student.detach().clone()
    logits[0, free] = -math.inf
    found = divergence_rows(logits, ids, values, kind, tail)
    expected = sparse_loss(logits.double(), ids, values, kind, tail)
    assert ((found - expected).abs() <= 2e-6 * (1 + expected)).all()


def divergence_rows(logits, ids, values, kind, tail):
    """The rows' losses of given logits, -inf and NaN included: passed as a bias, for a product would spread them."""
    rows = []
    for row, row_ids, row_values in zip(logits, ids, values, strict=True):
        hidden, head = torch.zeros(1, 1), torch.zeros(len(row), 1)
        options = {"tail": tail, "student_bias": row, "reduction": "none"}
        rows.append(linear_sparse_divergence(hidden, head, row_ids[None], row_values[None], kind, **options))
    return torch.cat(rows)


def test_text_alone_is_cross_entropy():
    student = torch.randn(6, 33, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([3, -100, 0, 32, -100, 7])
    loss = loss_of(student, labels[:, None], 1, tail="sampled", labels=labels)
    exact = student.detach().clone().requires_grad_()
    expected = -sum(exact[row].log_softmax(-1)[labels[row]] for row in (0, 2, 3, 5))
    torch.testing.assert_close(loss, expected)
    pair = [torch.autograd.grad(value, tensor)[0] for value, tensor in ((loss, student), (expected, exact))]
    torch.testing.assert_close(*pair)


def test_samples_add_up_and_need_not_be_normalised():
    student = torch.randn(1, 9, dtype=torch.float64, requires_grad=True)
    twice = loss_of(student, torch.tensor([[2, 2, 5]]), torch.tensor([[1.0, 2.0, 0.5]]).double(), tail="sampled")
    once = loss_of(student, torch.tensor([[2, 5, -1]]), torch.tensor([[3.0, 0.5, 9.0]]).double(), tail="sampled")
    torch.testing.assert_close(twice, once)
    pair = [torch.autograd.grad(loss, student)[0] for loss in (twice, once)]
    torch.testing.assert_close(*pair)


def test_half_precision_logprobs_may_pass_one():
    student = torch.randn(1, 50, dtype=torch.float64, requires_grad=True)
    values = torch.tensor([[0.7, 0.303]]).log()
    loss = loss_of(student, torch.tensor([[4, 8]]), values)
    expected, gradient = truth(
        student, torch.tensor([[4, 8]]), values - values.exp().sum().log(), "forward_kl", "bucket"
    )
    torch.testing.assert_close(loss, expected.sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], gradient, rtol=1e-5, atol=1e-5)


def test_an_id_that_only_a_gpu_can_see_to_be_outside_is_not_looked_up():
    """There it would end the process; a CPU refuses it before, or raises here."""
    shifted, nothing = -torch.rand(1, 5), torch.zeros(1, 1)
    ids, here = torch.tensor([[1, 7]]), torch.ones(1, 2, dtype=torch.bool)
    kept = Kept(ids, here, torch.zeros(1, 2), torch.zeros(1, 2), here[:, :1], None)
    assert _sum_of_others(Softened(shifted.exp(), shifted, nothing, None), kept).isfinite().all()
