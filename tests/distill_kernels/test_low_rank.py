"""A head with a LoRA update: the gradients of the definition, and nothing of the head's size is made for them."""

from dataclasses import asdict

import pytest
import torch
from distill_kernels import LowRankHead, linear_divergence, linear_sparse_divergence
from distill_kernels.calls import linear_call
from distill_kernels.settings import Settings
from distill_kernels.student import Student
from oracle import dense_loss, sparse_loss
from torch.utils._python_dispatch import TorchDispatchMode

N, H, V, R = 11, 8, 23, 3


def case(dtype=torch.float64, rows=N, tokens=V, size=H):
    hidden = torch.randn(rows, size).to(dtype).requires_grad_()
    weight = torch.randn(tokens, size).to(dtype)
    A, B = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((R, size), (tokens, R)))
    return (
        hidden,
        LowRankHead(weight=weight, lora_A=A, lora_B=B, scale=0.5),
        torch.randn(rows, 6),
        torch.randn(tokens, 6),
    )


def exact_logits(hidden, head):
    """float64 logits of the merged head, and their leaves."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (hidden, head.lora_A, head.lora_B)]
    return leaves[0] @ (head.weight.double() + head.scale * leaves[2] @ leaves[1]).T, leaves


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("chunk_bytes", [None, 4 * V * 16])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_are_those_of_the_merged_head(sparse, chunk_bytes, reduction):
    hidden, head, *teacher = case()
    bias = torch.randn(V, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, V, (N,))
    labels[::3] = -100
    options = {"labels": labels, "hard_weight": 0.25, "temperature": 2.0, "row_weight": torch.rand(N)}
    ids, values = torch.stack([torch.randperm(V)[:4] for _ in range(N)]), torch.full((N, 4), -2.0)
    common = {"student_bias": bias, "chunk_bytes": chunk_bytes, "reduction": reduction, **options}
    logits, leaves = exact_logits(hidden, head)
    exact_bias = bias.detach().requires_grad_()
    if sparse:
        loss = linear_sparse_divergence(hidden, head, ids, values, "jsd", **common)
        expected = sparse_loss(logits + exact_bias, ids, values, "jsd", "bucket", **options)
    else:
        teacher = [tensor.double() for tensor in teacher]
        loss = linear_divergence(hidden, head, *teacher, "jsd", **common)
        expected = dense_loss(logits + exact_bias, teacher[0] @ teacher[1].T, "jsd", **options)
    expected = expected.sum() if reduction == "sum" else expected
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    torch.testing.assert_close(loss, expected)
    right = torch.autograd.grad(expected, [*leaves, exact_bias], upstream)
    for _ in range(2):
        found = torch.autograd.grad(loss, [hidden, head.lora_A, head.lora_B, bias], upstream, retain_graph=True)
        for gradient, exact in zip(found, right, strict=True):
            torch.testing.assert_close(gradient, exact, rtol=1e-9, atol=1e-11)


class Largest(TorchDispatchMode):
    """Elements of the largest storage that is made."""

    def __init__(self, known):
        super().__init__()
        self.known, self.elements = {tensor.untyped_storage().data_ptr() for tensor in known}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if torch.is_tensor(part) and part.untyped_storage().data_ptr() not in self.known:
                self.elements = max(self.elements, part.untyped_storage().nbytes() // part.element_size())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_heads_size_is_made(dtype):
    hidden, head, *_ = case(dtype, rows=60, tokens=1000, size=128)
    ids, values = torch.arange(3).expand(60, 3), torch.full((60, 3), -2.0)
    with Largest([hidden, head.weight, head.lora_A, head.lora_B]) as made:
        linear_sparse_divergence(hidden, head, ids, values, chunk_bytes=20 * 1000 * dtype.itemsize).backward()
    assert made.elements == 20 * 1000  # a chunk of logits; the head has 128,000 weights
    assert head.weight.grad is None and all(t.grad is not None for t in (hidden, head.lora_A, head.lora_B))
    merged = (head.weight + head.scale * head.lora_B @ head.lora_A).detach().requires_grad_()
    with Largest([hidden, merged]) as made:
        linear_sparse_divergence(hidden, merged, ids, values, chunk_bytes=20 * 1000 * dtype.itemsize).backward()
    assert made.elements == merged.numel()  # what it is spared


def test_factors_of_float32_beside_a_head_of_bfloat16():
    """As PEFT keeps them: products in bfloat16, gradients in float32."""
    hidden, head, *teacher = case(torch.bfloat16)
    A, B = (tensor.detach().float().requires_grad_() for tensor in (head.lora_A, head.lora_B))
    wide = LowRankHead(weight=head.weight, lora_A=A, lora_B=B, scale=head.scale)
    losses = [linear_divergence(hidden, made, *teacher, "jsd") for made in (wide, head)]
    assert torch.equal(*losses)
    wide_gradients = torch.autograd.grad(losses[0], (A, B))
    narrow_gradients = torch.autograd.grad(losses[1], (head.lora_A, head.lora_B))
    for found, right in zip(wide_gradients, narrow_gradients, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found.bfloat16(), right)


@pytest.mark.parametrize("wanted", range(5))
def test_what_is_not_wanted_is_not_made(wanted):
    hidden, head, *teacher = case()
    hidden, teacher = hidden.detach(), [tensor.double() for tensor in teacher]
    student = Student.of(hidden, head, torch.zeros(len(head.weight), dtype=hidden.dtype))
    rest = (None, None, -100, "sum", None, None, asdict(Settings(kind="tvd")))
    call = linear_call(student, (*teacher, None), *rest)
    flags = [index == wanted for index in range(5)]
    _, gradients = call.evaluate(student.flat_tensors, flags, None)
    assert [gradient is not None for gradient in gradients] == flags


@pytest.mark.parametrize("frozen", ["hidden", "lora_A", "lora_B"])
def test_what_is_frozen_gets_none(frozen):
    hidden, head, *teacher = case()
    tensors = {"hidden": hidden, "lora_A": head.lora_A, "lora_B": head.lora_B}
    tensors[frozen].requires_grad_(False)
    teacher = [tensor.double() for tensor in teacher]
    linear_divergence(hidden, head, *teacher, "reverse_kl").backward()
    logits, leaves = exact_logits(hidden, head)
    exact = torch.autograd.grad(dense_loss(logits, teacher[0] @ teacher[1].T, "reverse_kl").sum(), leaves)
    for (name, tensor), right in zip(tensors.items(), exact, strict=True):
        if name == frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, right)


def test_bfloat16_is_no_worse_than_the_layer_itself():
    hidden, head, *teacher = case(torch.bfloat16, rows=64, tokens=300, size=32)
    teacher = [tensor.bfloat16() for tensor in teacher]
    logits, leaves = exact_logits(hidden, head)
    expected = dense_loss(logits, teacher[0].double() @ teacher[1].double().T, "jsd").sum()
    layer = hidden @ head.weight.T + head.scale * (hidden @ head.lora_A.T) @ head.lora_B.T
    eager = dense_loss(layer, teacher[0] @ teacher[1].T, "jsd").sum()
    loss = linear_divergence(hidden, head, *teacher, "jsd")
    tensors = [hidden, head.lora_A, head.lora_B]
    assert abs(loss - expected) <= 1.1 * abs(eager - expected) + 1e-3
    pairs = ((loss, tensors), (eager, tensors), (expected, leaves))
    for found, other, right in zip(*(torch.autograd.grad(value, of) for value, of in pairs), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - right).norm() <= 1.1 * (other - right).norm()


def test_a_layer_of_peft():
    """Its fields are what a LowRankHead takes; factors in float32 beside 16-bit weights keep float32 gradients."""
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(H, V, bias=False).bfloat16())
    peft.inject_adapter_in_model(peft.LoraConfig(r=R, lora_alpha=5, target_modules=["0"]), model)
    layer = model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    head = LowRankHead(weight=layer.base_layer.weight, lora_A=A, lora_B=B, scale=layer.scaling["default"])
    assert A.requires_grad and B.requires_grad and not head.weight.requires_grad
    hidden = torch.randn(N, H).bfloat16()
    labels = torch.randint(0, V, (N,))
    loss = linear_sparse_divergence(hidden, head, labels[:, None], 1.0, tail="sampled", logits_dtype=torch.float32)
    expected = torch.nn.functional.cross_entropy(layer.double()(hidden.double()), labels, reduction="sum")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_compiled_is_uncompiled(dtype, reduction):
    hidden, head, *teacher = case(dtype)
    teacher, labels = [tensor.to(dtype) for tensor in teacher], torch.tensor([3, -100] * 5 + [0])

    def function(hidden, A, B):
        low_rank = LowRankHead(weight=head.weight, lora_A=A, lora_B=B, scale=0.5)
        return linear_divergence(hidden, low_rank, *teacher, "jsd", labels=labels, reduction=reduction).sum()

    tensors = [hidden, head.lora_A, head.lora_B]
    loss, expected = torch.compile(function, fullgraph=True, backend="aot_eager")(*tensors), function(*tensors)
    assert torch.equal(loss, expected)
    pair = [torch.autograd.grad(value, tensors) for value in (loss, expected)]
    for found, right in zip(*pair, strict=True):
        assert found.dtype == dtype and torch.equal(found, right)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"lora_A": torch.zeros(R, H + 1)}, ValueError, r"student_head.lora_A.shape: found \[3, 9\]; needed \[3, 8\]"),
        (
            {"lora_B": torch.zeros(V, R + 1)},
            ValueError,
            r"student_head.lora_B.shape: found \[23, 4\]; needed \[23, 3\]",
        ),
        ({"lora_B": None}, TypeError, "student_head.lora_B: found NoneType"),
        ({"scale": "1"}, TypeError, "student_head.scale: found str"),
        ({"scale": float("nan")}, ValueError, "student_head.scale: found nan"),
        ({"weight": torch.zeros(V, H, requires_grad=True)}, ValueError, "student_head.weight: .*frozen"),
        ({"weight": torch.zeros(V, H + 1)}, ValueError, r"student_head: found shape \[23, 9\]"),
    ],
)
def test_refusals(change, error, words):
    parts = {"weight": torch.zeros(V, H), "lora_A": torch.zeros(R, H), "lora_B": torch.zeros(V, R), "scale": 1.0}
    with pytest.raises(error, match=words):
        linear_divergence(
            torch.zeros(N, H), LowRankHead(**{**parts, **change}), torch.zeros(N, 6), torch.zeros(V, 6), "jsd"
        )


def test_a_teacher_has_none():
    hidden, head, *_ = case(torch.float32)
    with pytest.raises(TypeError, match="teacher_head: found LowRankHead"):
        linear_divergence(hidden, head.weight, hidden.detach(), head, "jsd")
