"""Every divergence against float64 autograd of its definition: options, dtypes, strides, adversarial rows."""

import itertools

import pytest
import torch
from distill_kernels import divergence, linear_divergence
from distill_kernels.settings import KINDS
from oracle import dense_loss

OPTIONS = [
    {},
    {"temperature": 2.0},
    {"temperature": 0.7, "student_scale": 0.6, "teacher_scale": 1.7},
    {"student_softcap": 5.0, "teacher_softcap": 4.0, "student_scale": 1.3, "temperature": 1.5},
    {"hard_weight": 0.3},
    {"hard_weight": 0.4, "temperature": 3.0, "student_softcap": 6.0, "student_scale": 0.5},
    {"hard_weight": 1.0},
    {"beta": 0.1, "alpha": 0.4},
]


def rows(num_rows, num_student, num_teacher, spread=3.0, dtype=torch.float64):
    student = (torch.randn(num_rows, num_student) * spread).to(dtype)
    teacher = (torch.randn(num_rows, num_teacher) * spread).to(dtype)
    labels = torch.randint(0, min(num_student, num_teacher), (num_rows,))
    labels[1::3] = -100
    return student.requires_grad_(), teacher, labels


def truth(student, teacher, kind, **options):
    """Loss rows and the gradient of their sum, both float64."""
    exact = student.detach().double().requires_grad_()
    loss = dense_loss(exact, teacher, kind, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), exact)
    return loss.detach(), gradient


@pytest.mark.parametrize(("kind", "options"), itertools.product(KINDS, OPTIONS))
@pytest.mark.parametrize("sizes", [(13, 13), (19, 13), (13, 19)])
def test_float64_is_the_definition(kind, options, sizes):
    student, teacher, labels = rows(7, *sizes)
    weight = torch.rand(7)
    loss = divergence(student, teacher, kind, labels=labels, row_weight=weight, **options)
    expected, gradient = truth(student, teacher, kind, labels=labels, row_weight=weight, **options)
    torch.testing.assert_close(loss, expected.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "hard_weight": 0.5, "student_softcap": 20.0}])
@pytest.mark.parametrize("num_tokens", [1, 2, 1000, 40009])
def test_float32_loses_no_more_than_its_last_digits(kind, options, num_tokens):
    student, teacher, labels = rows(9, num_tokens, num_tokens, dtype=torch.float32)
    loss = divergence(student, teacher, kind, labels=labels, reduction="none", **options)
    expected, gradient = truth(student, teacher, kind, labels=labels, **options)
    scale = options.get("temperature", 1.0) ** 2
    assert ((loss - expected).abs() <= 1e-6 * scale * (1 + expected)).all(), (loss - expected).abs().max()
    found = torch.autograd.grad(loss.sum(), student)[0]
    allowed = 1e-6 + 2e-6 * expected.clamp(min=1)[:, None]
    assert ((found - gradient).abs() <= allowed).all(), (found - gradient).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_logits_are_taken_as_exact(kind):
    student, teacher, _ = rows(5, 501, 501, dtype=torch.bfloat16)
    loss = divergence(student, teacher, kind)
    expected, gradient = truth(student, teacher, kind)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected.sum(), rtol=2e-6, atol=1e-6)
    found = torch.autograd.grad(loss, student)[0]
    assert found.dtype == torch.bfloat16
    assert ((found - gradient).abs() <= gradient.abs() / 256 + 1e-6).all()


def test_teacher_and_student_may_differ_in_dtype():
    student, teacher, _ = rows(5, 50, 50, dtype=torch.float32)
    loss = divergence(student, teacher.bfloat16(), "jsd")
    expected, _ = truth(student, teacher.bfloat16(), "jsd")
    torch.testing.assert_close(loss.double(), expected.sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_gradcheck(kind, reduction):
    student, teacher, labels = rows(4, 6, 5)
    options = {"labels": labels, "temperature": 1.3, "hard_weight": 0.2, "student_softcap": 7.0, "reduction": reduction}
    torch.autograd.gradcheck(lambda logits: divergence(logits, teacher, kind, **options), student)


@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_changes_nothing(kind):
    student, teacher, _ = rows(4, 300, 300, dtype=torch.float32)
    far, far_teacher = (student.detach() + 1e4).requires_grad_(), teacher - 1e4
    expected, gradient = truth(far, far_teacher, kind)
    loss = divergence(far, far_teacher, kind, reduction="none", temperature=1.0)
    assert ((loss - expected).abs() <= 1e-6 * (1 + expected)).all()
    assert (torch.autograd.grad(loss.sum(), far)[0] - gradient).abs().max() <= 5e-6
    odd = divergence(far, far_teacher, kind, reduction="none", temperature=0.7)
    expected = dense_loss(far.detach().double(), far_teacher.double(), kind, temperature=0.7)
    assert ((odd - expected).abs() <= 2e-6 * (1 + expected)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_identical_rows_are_zero(kind):
    student, _, _ = rows(4, 1003, 1003, dtype=torch.float32)
    loss = divergence(student, student.detach(), kind)
    assert abs(loss.item()) <= 1e-6
    # a GPU's approximate reciprocal and logarithm are each one unit off in the last place
    assert torch.autograd.grad(loss, student)[0].abs().max() <= (3e-7 if student.is_cuda else 1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("floor", [-float("inf"), torch.finfo(torch.float32).min])
@pytest.mark.parametrize("side", ["both", "teacher", "student"])
def test_masked_tokens(kind, floor, side):
    student, teacher, _ = rows(3, 40, 40, dtype=torch.float32)
    with torch.no_grad():
        if side != "teacher":
            student[:, :9] = floor
        if side != "student":
            teacher[:, :9] = floor
    infinite = floor == -float("inf") and (kind, side) in {("forward_kl", "student"), ("reverse_kl", "teacher")}
    loss = divergence(student, teacher, kind, reduction="none")
    (found,) = torch.autograd.grad(loss.sum(), student)
    if infinite:
        assert torch.isposinf(loss).all()
        if kind == "forward_kl":
            assert torch.allclose(found, student.detach().softmax(-1) - teacher.softmax(-1), atol=1e-6)
        return
    # autograd of the definition meets 0 * inf in backward; a logit of -200 has a probability of zero just as well
    cut = [tensor.detach().double().clamp(min=-200.0) for tensor in (student, teacher)]
    if (kind, side) in {("forward_kl", "student"), ("reverse_kl", "teacher")}:
        assert (loss > 1e30).all()
        return
    expected, gradient = truth(*cut, kind)
    assert ((loss - expected).abs() <= 1e-6 * (1 + expected)).all()
    assert (found - gradient).abs().max() <= 3e-6


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_rows_stay_finite(kind):
    student = torch.zeros(2, 30)
    teacher = torch.zeros(2, 30)
    student[0, 3], teacher[0, 5] = 1e4, 1e4
    teacher[1, 7] = 80.0
    student.requires_grad_()
    loss = divergence(student, teacher, kind, reduction="none")
    expected, gradient = truth(student, teacher, kind)
    assert ((loss - expected).abs() <= 2e-6 * (1 + expected)).all()
    found = torch.autograd.grad(loss.sum(), student)[0]
    assert ((found - gradient).abs() <= 1e-6 + 2e-6 * expected[:, None]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_row_is_alone(kind, poison):
    student, teacher, _ = rows(5, 20, 20, dtype=torch.float32)
    clean = divergence(student, teacher, kind, reduction="none")
    with torch.no_grad():
        student[2, 4] = poison
        teacher[3, 1] = poison
    loss = divergence(student, teacher, kind, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, True, False]
    torch.testing.assert_close(loss[[0, 1, 4]], clean[[0, 1, 4]], rtol=0, atol=1e-7)


def test_a_row_of_nothing_but_minus_infinity_is_nan():
    student, teacher, _ = rows(3, 20, 20, dtype=torch.float32)
    with torch.no_grad():
        student[1] = -float("inf")
    assert divergence(student, teacher, "jsd", reduction="none").isnan().tolist() == [False, True, False]


def test_leading_dimensions_and_strides():
    logits = (torch.randn(3, 6, 17, dtype=torch.float64) * 2).requires_grad_()
    teacher = torch.randn(6, 3, 17, dtype=torch.float64).transpose(0, 1)
    labels = torch.randint(0, 17, (3, 5))
    labels[0, :2] = -100
    loss = divergence(logits[:, :-1], teacher[:, 1:], "jsd", labels=labels, reduction="none")
    flat = dense_loss(logits[:, :-1].reshape(-1, 17), teacher[:, 1:].reshape(-1, 17), "jsd", labels=labels.reshape(-1))
    assert loss.shape == (3, 5)
    torch.testing.assert_close(loss, flat.view(3, 5))
    (found,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(flat.sum(), logits)[0])
    tokens_first = teacher.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    torch.testing.assert_close(
        divergence(logits.detach(), tokens_first, "tvd"), divergence(logits.detach(), teacher, "tvd")
    )


def test_properties():
    student, teacher, _ = rows(6, 50, 50, spread=1.0)
    student = student.detach()
    forward = divergence(student, teacher, "forward_kl", reduction="none")
    torch.testing.assert_close(divergence(teacher, student, "reverse_kl", reduction="none"), forward)
    for kind in ("skew_forward_kl", "jsd"):
        option = {"beta": 1e-6} if kind == "jsd" else {"alpha": 1e-6}
        near = divergence(student, teacher, kind, reduction="none", **option)
        torch.testing.assert_close(near / (1e-6 if kind == "jsd" else 1.0), forward, rtol=2e-3, atol=1e-3)
    entropy = -(0.3 * torch.tensor(0.3).log() + 0.7 * torch.tensor(0.7).log())
    assert (divergence(student, teacher, "jsd", beta=0.3, reduction="none") <= entropy).all()
    order = torch.randperm(50)
    torch.testing.assert_close(
        divergence(student[:, order], teacher[:, order], "tvd"), divergence(student, teacher, "tvd")
    )


def test_blocks_do_not_show(monkeypatch):
    student, teacher, labels = rows(23, 31, 31)
    whole = divergence(student, teacher, "jsd", labels=labels, hard_weight=0.2, temperature=2.0, reduction="none")
    (gradient,) = torch.autograd.grad(whole.sum(), student)
    monkeypatch.setattr("distill_kernels.materialised.block_rows", lambda *_: 4)
    blocks = divergence(student, teacher, "jsd", labels=labels, hard_weight=0.2, temperature=2.0, reduction="none")
    # not bit for bit: the last lanes of a block take another path through vectorised exp
    torch.testing.assert_close(blocks, whole, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(blocks.sum(), student)[0], gradient, rtol=1e-12, atol=1e-14)


def test_agrees_with_the_linear_op():
    hidden, head = torch.randn(6, 8, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    teacher_hidden, teacher_head = torch.randn(6, 5, dtype=torch.float64), torch.randn(28, 5, dtype=torch.float64)
    linear = linear_divergence(hidden, head, teacher_hidden, teacher_head, "skew_reverse_kl")
    torch.testing.assert_close(linear, divergence(hidden @ head.T, teacher_hidden @ teacher_head.T, "skew_reverse_kl"))


def test_autocast_leaves_ready_logits_alone():
    student, teacher, _ = rows(5, 50, 50, dtype=torch.float32)
    expected = divergence(student, teacher, "jsd", temperature=0.7)
    (gradient,) = torch.autograd.grad(expected, student)
    with torch.autocast("cpu", torch.bfloat16):
        loss = divergence(student, teacher, "jsd", temperature=0.7)
        (found,) = torch.autograd.grad(loss, student)
    assert torch.equal(loss, expected) and torch.equal(found, gradient)


@pytest.mark.parametrize(("kind", "options"), [("skew_forward_kl", {"alpha": 1e-20}), ("jsd", {"beta": 1 - 1.2e-16})])
def test_weights_next_to_their_bounds(kind, options):
    # student and teacher are sure of other tokens, so the mixture is as far from one of them as its weight allows
    student, teacher = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 50.0, 0.0]])
    loss = divergence(student, teacher, kind, **options)
    (gradient,) = torch.autograd.grad(loss, student)
    exact = divergence(student.detach().double(), teacher.double(), kind, **options)
    assert gradient.isfinite().all()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-6) and loss >= 0
