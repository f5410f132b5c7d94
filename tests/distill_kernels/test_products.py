"""Products: which library takes them, that it gets them right, and what float32 logits of 16-bit inputs are worth."""

import pytest
import torch
from distill_kernels import LowRankHead, linear_divergence, linear_sparse_divergence, products
from distill_kernels.projection import Projection
from oracle import dense_loss
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ONEDNN = "mkldnn::_linear_pointwise"
needs_onednn = pytest.mark.skipif(not products._has_onednn(), reason="this torch or processor goes without oneDNN")


class Called(TorchDispatchMode):
    """Names of the products that were taken."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in (ONEDNN, "aten::mm", "aten::addmm", "aten::addmm_"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def matrix(num_rows, num_columns, layout):
    if layout == "transposed":
        return torch.randn(num_columns, num_rows).T
    if layout == "gaps":
        return torch.randn(num_rows, num_columns + 7)[:, :num_columns]
    return torch.randn(num_rows, num_columns)


@pytest.mark.parametrize("sizes", [(131, 96, 2048), (4500, 33, 257), (9, 700, 1021), (1, 4096, 2048), (300, 7, 5000)])
@pytest.mark.parametrize("layouts", [("rows", "rows"), ("transposed", "transposed"), ("gaps", "gaps")])
def test_every_way_of_a_product_in_float32(sizes, layouts):
    num_rows, size, num_columns = sizes
    a, b = matrix(num_rows, size, layouts[0]), matrix(size, num_columns, layouts[1])
    bias, before = torch.randn(num_columns), torch.randn(num_rows, num_columns)
    exact = a.double() @ b.double()
    written, added = before.clone(), before.clone()
    products.write_product(written, a, b)
    products.add_product(added, a, b, 0.5)
    given = torch.empty(num_rows, num_columns)
    close = {"rtol": 1e-5, "atol": 1e-5 * size**0.5}
    torch.testing.assert_close(products.product(a, b, bias, given).double(), exact + bias.double(), **close)
    torch.testing.assert_close(products.product(a, b).double(), exact, **close)
    torch.testing.assert_close(written.double(), exact, **close)
    torch.testing.assert_close(added.double(), before.double() + 0.5 * exact, **close)


@needs_onednn
@pytest.mark.parametrize("masked", [False, True])
def test_all_large_products_of_float32_go_to_onednn(masked):
    student, teacher = torch.randn(257, 64).requires_grad_(), torch.randn(257, 96)
    head, teacher_head = torch.randn(4001, 64).requires_grad_(), torch.randn(4001, 96)
    labels = torch.where(torch.arange(257) % 3 == 0, -100, 1) if masked else None
    with Called() as called:
        linear_divergence(student, head, teacher, teacher_head, "jsd", labels=labels)
    # two logits, the hidden states' gradient, and the head's in two parts
    assert called.names == [ONEDNN] * 5


@needs_onednn
def test_a_head_with_gaps_between_its_rows_never_goes_to_onednn():
    # its reference code took 1.8 s for a product of 1 ms
    student, head = torch.randn(128, 512), torch.randn(2048, 600)[:, :512]
    with Called() as called:
        linear_divergence(student, head, student, head, "forward_kl")
    assert called.names == ["aten::mm"] * 2


@needs_onednn
def test_two_runs_give_the_same_bits():
    student, teacher = torch.randn(257, 64), torch.randn(257, 96)
    head, teacher_head = torch.randn(4001, 64), torch.randn(4001, 96)

    def run():
        tensors = [student.clone().requires_grad_(), head.clone().requires_grad_()]
        loss = linear_divergence(*tensors, teacher, teacher_head, "forward_kl")
        return [loss.detach(), *torch.autograd.grad(loss, tensors)]

    assert all(map(torch.equal, run(), run()))


def off(found, right):
    return ((found.double() - right).norm() / right.norm()).item()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """float32 logits of 16-bit products, which a CPU cannot take: of widened inputs here. The rest is as it is there.

    On a GPU, test_gpu.py asks the same of the product itself.
    """
    wide = property(lambda self: torch.float32 if self.product_dtype.itemsize == 2 else self.product_dtype)
    monkeypatch.setattr(Projection, "logits_dtype", wide)
    monkeypatch.setattr(products, "_widening_mm", lambda a, b, out: torch.mm(a.to(out.dtype), b.to(out.dtype), out=out))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_bytes", [None, 2**18])
@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
def test_float32_logits_of_16_bit_inputs_keep_a_small_divergence(as_on_a_gpu, kind, chunk_bytes, dtype):
    head, teacher = (torch.randn(3001, 64) * 0.4).to(dtype), torch.randn(96, 64).to(dtype)
    student = (teacher.float() + 0.05 * torch.randn(96, 64)).to(dtype)
    bias = torch.randn(3001).to(dtype)
    exact = [tensor.double().requires_grad_() for tensor in (student, head, bias)]
    rows = dense_loss(exact[0] @ exact[1].T + exact[2], teacher.double() @ head.double().T, kind)
    right = torch.autograd.grad(rows.sum(), exact)
    here = [tensor.clone().requires_grad_() for tensor in (student, head, bias)]
    given = {"student_bias": here[2], "chunk_bytes": chunk_bytes}
    found = linear_divergence(*here[:2], teacher, head, kind, reduction="none", **given)
    assert ((found.double() - rows).abs() <= 2e-6 * (1 + rows)).all()
    assert off(found.sum(), rows.sum()) <= 1e-6
    loss = linear_divergence(*here[:2], teacher, head, kind, **given)
    gradients = torch.autograd.grad(loss, here)
    assert max(map(off, gradients, right)) <= 4e-3


@pytest.mark.parametrize("tail", ["bucket", "sampled"])
def test_float32_logits_before_a_sparse_teacher(as_on_a_gpu, tail):
    student, head = torch.randn(40, 64).bfloat16(), (torch.randn(3001, 64) * 0.4).bfloat16()
    token_ids = torch.stack([torch.randperm(3001)[:8] for _ in range(40)]).int()
    values = torch.rand(40, 8) / 8 if tail == "sampled" else torch.log(torch.rand(40, 8) / 16)
    exact = [tensor.double().requires_grad_() for tensor in (student, head)]
    right = linear_sparse_divergence(*exact, token_ids, values.double(), tail=tail)
    here = [tensor.clone().requires_grad_() for tensor in (student, head)]
    found = linear_sparse_divergence(*here, token_ids, values, tail=tail)
    assert off(found, right) <= 1e-6
    assert max(map(off, torch.autograd.grad(found, here), torch.autograd.grad(right, exact))) <= 4e-3


def test_float32_logits_of_a_head_with_a_low_rank_update(as_on_a_gpu):
    student, weight, A, B = (torch.randn(*shape).bfloat16() for shape in ((40, 64), (3001, 64), (4, 64), (3001, 4)))
    A, B = (0.1 * A).requires_grad_(), (0.1 * B).requires_grad_()
    teacher = torch.randn(40, 64).bfloat16()
    head = LowRankHead(weight=weight, lora_A=A, lora_B=B, scale=2.0)
    found = linear_divergence(student, head, teacher, weight, "forward_kl")
    exact_A, exact_B = A.detach().double().requires_grad_(), B.detach().double().requires_grad_()
    whole = weight.double() + 2 * exact_B @ exact_A
    right = dense_loss(student.double() @ whole.T, teacher.double() @ weight.double().T, "forward_kl").sum()
    assert off(found, right) <= 2e-3  # hidden @ A is rounded, as it is in PEFT's forward
    pairs = zip(torch.autograd.grad(found, [A, B]), torch.autograd.grad(right, [exact_A, exact_B]), strict=True)
    assert all(off(*pair) <= 1e-2 for pair in pairs)


def test_torch_has_the_widening_product_of_a_gpu():
    with FakeTensorMode():
        a, b = (torch.empty(*shape, dtype=torch.bfloat16, device="cuda") for shape in ((8, 16), (16, 50)))
        memory = torch.empty_strided((8, 50), (64, 1), device="cuda")
        found = products.product(a, b, out_MN=memory)
    assert found is memory and found.dtype == torch.float32 and found.shape == (8, 50)
