"""What the linear ops promise about gradients, chunks, masks, frozen parts, dtypes and memory."""

import math

import pytest
import torch
from distill_kernels import linear_divergence, linear_sparse_divergence
from oracle import dense_loss
from torch.utils._python_dispatch import TorchDispatchMode


def case(num_rows=11, student=(8, 23), teacher=(6, 21), dtype=torch.float64):
    hidden = torch.randn(num_rows, student[0]).to(dtype).requires_grad_()
    head = torch.randn(student[1], student[0]).to(dtype).requires_grad_()
    bias = torch.randn(student[1]).to(dtype).requires_grad_()
    teacher_hidden = torch.randn(num_rows, teacher[0]).to(dtype)
    return hidden, head, bias, teacher_hidden, torch.randn(teacher[1], teacher[0]).to(dtype)


def truth(hidden, head, bias, teacher_hidden, teacher_head, kind, teacher_bias=None, **options):
    """Loss rows, still attached to float64 copies of the student's tensors, and these copies."""
    exact = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in (hidden, head, bias)]
    logits = exact[0] @ exact[1].T if bias is None else exact[0] @ exact[1].T + exact[2]
    teacher_logits = teacher_hidden.double() @ teacher_head.double().T
    if teacher_bias is not None:
        teacher_logits = teacher_logits + teacher_bias.double()
    return dense_loss(logits, teacher_logits, kind, **options), [tensor for tensor in exact if tensor is not None]


def on_gpu(tensor):
    """Where rows of logits begin at multiples of 64 tokens, in float32 (scripts/gpu_check)."""
    return tensor.is_cuda


@pytest.mark.parametrize("kind", ["forward_kl", "jsd", "tvd"])
@pytest.mark.parametrize("chunk_bytes", [None, 1, 3 * 44 * 8])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [((8, 23), (6, 21)), ((8, 21), (8, 23))])
def test_gradients_of_everything(kind, chunk_bytes, masked, sizes):
    hidden, head, bias, teacher_hidden, teacher_head = case(11, *sizes)
    teacher_bias = torch.randn(len(teacher_head), dtype=torch.float64)
    labels = torch.randint(0, 21, (11,))
    if masked:
        labels[::2] = -100
    options = {"labels": labels, "hard_weight": 0.25, "temperature": 2.0, "row_weight": torch.rand(11)}
    loss = linear_divergence(
        hidden, head, teacher_hidden, teacher_head, kind, student_bias=bias, teacher_bias=teacher_bias,
        chunk_bytes=chunk_bytes, **options,
    )  # fmt: skip
    expected, exact = truth(hidden, head, bias, teacher_hidden, teacher_head, kind, teacher_bias, **options)
    torch.testing.assert_close(loss, expected.sum())
    found = torch.autograd.grad(3 * loss, [hidden, head, bias])
    for gradient, right in zip(found, torch.autograd.grad(3 * expected.sum(), exact), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("upstream", [0.0, 1.0, 1 / 3, 65536.0])
def test_any_incoming_gradient_and_twice(upstream):
    hidden, head, _, *teacher = case()
    loss = linear_divergence(hidden, head, *teacher, "reverse_kl")
    expected, exact = truth(hidden, head, None, *teacher, "reverse_kl")
    right = torch.autograd.grad(upstream * expected.sum(), exact)
    for _ in range(2):
        (upstream * loss).backward(retain_graph=True)
    for tensor, gradient in zip((hidden, head), right, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * gradient)


@pytest.mark.parametrize("masked", [False, True])
def test_a_loss_per_row_has_a_gradient_per_row(masked):
    hidden, head, bias, *teacher = case()
    labels = torch.randint(0, 21, (11,)) if masked else None
    if labels is not None:
        labels[3:6] = -100
    upstream = torch.randn(11, dtype=torch.float64)
    options = {"labels": labels, "row_weight": torch.rand(11)}
    loss = linear_divergence(hidden, head, *teacher, "jsd", student_bias=bias, reduction="none", **options)
    expected, exact = truth(hidden, head, bias, *teacher, "jsd", **options)
    torch.testing.assert_close(loss, expected)
    right = torch.autograd.grad(expected, exact, upstream)
    for _ in range(2):
        found = torch.autograd.grad(loss, [hidden, head, bias], upstream, retain_graph=True)
        for gradient, exact_gradient in zip(found, right, strict=True):
            torch.testing.assert_close(gradient, exact_gradient)


def test_leading_dimensions_and_strides():
    hidden = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    _, head, _, _, teacher_head = case()
    teacher_hidden = torch.randn(6, 3, 6, dtype=torch.float64).transpose(0, 1)
    loss = linear_divergence(hidden[:, :-1], head, teacher_hidden[:, :-1], teacher_head, "jsd", reduction="none")
    flat = (hidden[:, :-1].reshape(-1, 8), head, None, teacher_hidden[:, :-1].reshape(-1, 6), teacher_head)
    expected, exact = truth(*flat, "jsd")
    torch.testing.assert_close(loss, expected.view(3, 5))
    (found,) = torch.autograd.grad(loss.sum(), hidden)
    torch.testing.assert_close(found[:, :-1].reshape(-1, 8), torch.autograd.grad(expected.sum(), exact[0])[0])
    assert (found[:, -1] == 0).all()


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("num_rows", [0, 5])
def test_no_row_counts(num_rows, reduction):
    hidden, head, bias, *teacher = case(num_rows)
    labels = torch.full((num_rows,), -100)
    options = {"labels": labels, "hard_weight": 0.5, "student_bias": bias, "reduction": reduction}
    dense = linear_divergence(hidden, head, *teacher, "jsd", **options)
    ids = torch.full((num_rows, 2), -1)
    sparse = linear_sparse_divergence(hidden, head, ids, torch.zeros(num_rows, 2), **options)
    for loss in (dense, sparse):
        assert loss.requires_grad and (loss == 0).all()
        students = [hidden, head, bias]
        for gradient, tensor in zip(torch.autograd.grad(loss.sum(), students), students, strict=True):
            assert gradient.shape == tensor.shape and (gradient == 0).all()


def test_masked_rows_are_not_looked_at():
    hidden, head, _, teacher_hidden, teacher_head = case()
    labels = torch.zeros(11, dtype=torch.long)
    labels[4] = -100
    with torch.no_grad():
        hidden[4], teacher_hidden[4] = math.nan, math.nan
    loss = linear_divergence(hidden, head, teacher_hidden, teacher_head, "jsd", labels=labels)
    loss.backward()
    assert loss.isfinite() and head.grad.isfinite().all() and (hidden.grad[4] == 0).all()


class Allocations(TorchDispatchMode):
    """Elements of the largest new tensor, and how often a product was taken."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {
            part.untyped_storage().data_ptr() for part in (*args, *(kwargs or {}).values()) if torch.is_tensor(part)
        }
        for part in result if isinstance(result, tuple | list) else [result]:
            if torch.is_tensor(part) and part.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, part.numel())
        self.products += func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_")
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparse", [False, True])
def test_no_tensor_is_larger_than_a_chunk_or_the_head(dtype, sparse):
    hidden, head, _, *teacher = case(200, (4, 1000), (4, 1000), dtype)
    each = torch.float32 if on_gpu(hidden) else dtype
    rounded = 2 if each != dtype else 0  # a GPU's gradient lies beside the logits
    row_bytes = 1000 * (each.itemsize * (1 if sparse else 2) + rounded)
    num_rows = 40 if sparse else 20
    chunk_bytes = num_rows * row_bytes
    ids, values = torch.arange(3).expand(200, 3), torch.full((200, 3), -2.0)
    with Allocations() as seen:
        if sparse:
            loss = linear_sparse_divergence(hidden, head, ids, values, chunk_bytes=chunk_bytes)
        else:
            loss = linear_divergence(hidden, head, *teacher, "jsd", chunk_bytes=chunk_bytes)
        loss.backward()
    if rounded:  # half of the budget holds the 16-bit gradient of several chunks
        num_rows = chunk_bytes // 2 // (1000 * dtype.itemsize)
    assert seen.largest == num_rows * (1024 if on_gpu(hidden) else 1000)


def test_a_frozen_head_has_no_gradient_buffer():
    hidden, head, _, *teacher = case(6, (64, 500), (64, 500), torch.bfloat16)
    head.requires_grad_(False)
    with Allocations() as seen:
        loss = linear_divergence(hidden, head, *teacher, "jsd")
        loss.backward()
    assert seen.largest == 6 * (512 if on_gpu(hidden) else 500) < head.numel()
    assert seen.products == 3  # two models' logits, one gradient
    assert head.grad is None and hidden.grad is not None


def test_without_gradients_there_is_no_gradient_work():
    hidden, head, _, *teacher = case(6, (64, 500), (64, 500))
    with Allocations() as seen, torch.no_grad():
        loss = linear_divergence(hidden, head, *teacher, "jsd")
    assert seen.products == 2 and not loss.requires_grad
    hidden.requires_grad_(False)
    loss = linear_divergence(hidden, head, *teacher, "jsd")
    (head_gradient,) = torch.autograd.grad(loss, head)
    expected, exact = truth(hidden, head, None, *teacher, "jsd")
    torch.testing.assert_close(head_gradient, torch.autograd.grad(expected.sum(), exact)[1])


@pytest.mark.parametrize("chunk_bytes", [None, 12 * 300 * 4])
def test_bfloat16_is_no_worse_than_eager_bfloat16(chunk_bytes):
    hidden, head, _, *teacher = case(64, (32, 300), (32, 300), torch.bfloat16)
    expected, exact = truth(hidden, head, None, *teacher, "jsd")
    right = torch.autograd.grad(expected.sum(), exact)
    eager = dense_loss((hidden @ head.T), teacher[0] @ teacher[1].T, "jsd").sum()
    eager_gradients = torch.autograd.grad(eager, [hidden, head])
    loss = linear_divergence(hidden, head, *teacher, "jsd", chunk_bytes=chunk_bytes)
    found = torch.autograd.grad(loss, [hidden, head])
    assert abs(loss - expected.sum()) <= 1.1 * abs(eager - expected.sum()) + 1e-4
    for gradient, eager_gradient, exact_gradient in zip(found, eager_gradients, right, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient - exact_gradient).norm() <= 1.1 * (eager_gradient - exact_gradient).norm()


def test_float32_products_of_bfloat16_inputs():
    hidden, head, bias, *teacher = case(64, (32, 300), (32, 300), torch.bfloat16)
    options = {"student_bias": bias, "logits_dtype": torch.float32}
    loss = linear_divergence(hidden, head, *teacher, "forward_kl", **options)
    expected, exact = truth(hidden, head, bias, *teacher, "forward_kl")
    torch.testing.assert_close(loss.double(), expected.sum(), rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(loss, [hidden, head, bias])
    for gradient, right in zip(found, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert (gradient - right).norm() <= 3e-3 * right.norm()


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_autocast_takes_products_in_bfloat16_and_keeps_float32_gradients(reduction):
    hidden, head, _, *teacher = case(80, (32, 300), (32, 300), torch.float32)
    with torch.autocast(hidden.device.type, torch.bfloat16):
        loss = linear_divergence(hidden, head, *teacher, "jsd", reduction=reduction, chunk_bytes=8 * 300 * 4)
    found = torch.autograd.grad(loss.sum(), [hidden, head])
    rounded = [tensor.detach().bfloat16() for tensor in (hidden, head, *teacher)]
    same = [tensor.requires_grad_() for tensor in rounded[:2]]
    expected = linear_divergence(*same, *rounded[2:], "jsd", reduction=reduction, chunk_bytes=8 * 300 * 4)
    assert torch.equal(loss, expected)
    for gradient, right in zip(found, torch.autograd.grad(expected.sum(), same), strict=True):
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient.bfloat16(), right)
    assert not torch.equal(found[1], found[1].bfloat16().float())  # added up and kept in float32


def test_a_tied_head_gets_both_gradients():
    _, head, _, *teacher = case()
    tokens = torch.randint(0, 23, (11,))
    loss = linear_divergence(torch.tanh(head[tokens]), head, *teacher, "jsd")
    exact = head.detach().clone().requires_grad_()
    expected = dense_loss(torch.tanh(exact[tokens]) @ exact.T, teacher[0] @ teacher[1].T, "jsd").sum()
    pair = [torch.autograd.grad(value, tensor)[0] for value, tensor in ((loss, head), (expected, exact))]
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_result_every_time(dtype):
    hidden, head, _, *teacher = case(50, (16, 400), (16, 400), dtype)
    runs = []
    for _ in range(2):
        loss = linear_divergence(hidden, head, *teacher, "skew_forward_kl", chunk_bytes=16 * 400 * 8)
        runs.append([loss, *torch.autograd.grad(loss, [hidden, head])])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
