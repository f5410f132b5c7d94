"""torch.compile(fullgraph=True) over the public ops gives what they give uncompiled; opcheck finds nothing wrong."""

import itertools

import pytest
import torch
from distill_kernels import divergence, linear_divergence, linear_sparse_divergence, ops
from distill_kernels.library import _divergence, _linear, _ordered, _sparse

OPTIONS = {"kind": "jsd", "beta": 0.3, "alpha": 0.1, "temperature": 2.0, "hard_weight": 0.25, "student_scale": 1.5}
OPTIONS |= {"student_softcap": 9.0, "teacher_scale": 1.0, "teacher_softcap": None}
BACKEND = "aot_eager"


def case(dtype=torch.float32, bias=True):
    """Student, teacher and what their rows have besides, two leading dimensions."""
    student = [torch.randn(2, 3, 8), torch.randn(23, 8), torch.randn(23) if bias else None]
    student = [None if tensor is None else tensor.to(dtype).requires_grad_() for tensor in student]
    teacher = [torch.randn(2, 3, 6).to(dtype), torch.randn(21, 6).to(dtype), None]
    labels = torch.randint(0, 21, (2, 3))
    labels[0, 1] = -100
    return student, teacher, {"labels": labels, "row_weight": torch.rand(2, 3)}


def calls(dtype=torch.float32, **options):
    """The three ops as functions of the student's tensors, and these."""
    student, teacher, rows = case(dtype)
    hard = {"hard_weight": 0.25, "temperature": 2.0, **rows, **options}
    ids = torch.stack([torch.randperm(21)[:4] for _ in range(6)]).view(2, 3, 4)
    values = torch.full((2, 3, 4), -2.0)
    logits, teacher_logits = torch.randn(2, 3, 23, dtype=dtype, requires_grad=True), torch.randn(2, 3, 21, dtype=dtype)

    def dense(hidden, head, bias):
        return linear_divergence(hidden, head, *teacher[:2], "skew_forward_kl", student_bias=bias, **hard)

    def sparse(hidden, head, bias):
        return linear_sparse_divergence(hidden, head, ids, values, "jsd", student_bias=bias, **hard)

    def ready(logits):
        return divergence(logits, teacher_logits, "reverse_kl", **hard)

    return [(ready, [logits]), (dense, student), (sparse, student)]


@pytest.mark.parametrize(("index", "reduction"), itertools.product(range(3), ["sum", "none"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_is_uncompiled(index, reduction, dtype):
    function, students = calls(dtype, reduction=reduction)[index]
    expected = function(*students)
    compiled = torch.compile(function, fullgraph=True, backend=BACKEND)
    loss = compiled(*students)
    assert torch.equal(loss, expected) and loss.dtype == expected.dtype and loss.shape == expected.shape
    upstream = torch.randn(expected.shape) if reduction == "none" else torch.tensor(3.0)
    right = torch.autograd.grad(expected, students, upstream)
    found = torch.autograd.grad(loss, students, upstream)
    for gradient, other in zip(found, right, strict=True):
        assert gradient.dtype == other.dtype
        assert torch.equal(gradient, other)


@pytest.mark.parametrize("index", range(3))
def test_compiled_by_inductor(index):
    import shutil

    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    function, students = calls()[index]
    loss = torch.compile(lambda *tensors: 2 * function(*tensors) + 1, fullgraph=True)(*students)
    expected = 2 * function(*students) + 1
    torch.testing.assert_close(loss, expected)
    pair = [torch.autograd.grad(value, students) for value in (loss, expected)]
    for gradient, other in zip(*pair, strict=True):
        torch.testing.assert_close(gradient, other)


def test_part_of_a_larger_graph():
    """Hidden states from a layer, an in-graph mask, gradients through both."""
    student, teacher, _ = case()
    layer = torch.nn.Linear(8, 8)

    def step(inputs, labels):
        hidden = torch.tanh(layer(inputs))
        labels = torch.where(labels > 3, labels, -100)
        return linear_divergence(hidden, student[1], *teacher[:2], "jsd", labels=labels) / (labels >= 0).sum()

    inputs, labels = torch.randn(2, 3, 8), torch.tensor([[1, 7, 3], [20, 4, 0]])
    parameters = [layer.weight, student[1]]
    expected = step(inputs, labels)
    loss = torch.compile(step, fullgraph=True, backend=BACKEND)(inputs, labels)
    pair = [torch.autograd.grad(value, parameters) for value in (loss, expected)]
    torch.testing.assert_close(loss, expected)
    for gradient, other in zip(*pair, strict=True):
        torch.testing.assert_close(gradient, other)


def test_the_number_of_rows_may_change():
    student, teacher, _ = case(bias=False)

    def function(hidden, teacher_hidden):
        return linear_divergence(hidden, student[1], teacher_hidden, teacher[1], "jsd", reduction="none")

    compiled = torch.compile(function, fullgraph=True, backend=BACKEND, dynamic=True)
    for rows in (5, 7, 11):
        inputs = torch.randn(rows, 8), torch.randn(rows, 6)
        torch.testing.assert_close(compiled(*inputs), function(*inputs))


def test_a_frozen_head_costs_nothing(monkeypatch):
    """The compiled op is told what is wanted, so that no gradient of the head is made."""
    student, teacher, _ = case()
    hidden, head = student[0], student[1].detach()
    seen = []
    evaluate = ops.LinearCall.evaluate

    def watched(call, students, wanted, extra_N):
        seen.append(list(wanted))
        return evaluate(call, students, wanted, extra_N)

    monkeypatch.setattr(ops.LinearCall, "evaluate", watched)

    def function(hidden, head):
        return linear_divergence(hidden, head, *teacher[:2], "jsd")

    compiled = torch.compile(function, fullgraph=True, backend=BACKEND)
    compiled(hidden, head).backward()
    assert seen == [[True, False, False, False, False]]
    with torch.no_grad():
        compiled(hidden, head)
    assert seen[1:] == [[False] * 5]


def test_autocast_is_settled_while_compiling():
    student, teacher, rows = case(bias=False)

    def function(hidden, head):
        with torch.autocast("cpu", torch.bfloat16):
            return linear_divergence(hidden, head, *teacher[:2], "jsd", **rows)

    expected = function(*student[:2])
    loss = torch.compile(function, fullgraph=True, backend=BACKEND)(*student[:2])
    assert torch.equal(loss, expected)
    pair = [torch.autograd.grad(value, student[:2]) for value in (loss, expected)]
    assert all(torch.equal(*gradients) for gradients in zip(*pair, strict=True))


def test_labels_are_checked_when_the_compiled_code_runs():
    student, teacher, rows = case()

    def function(hidden, labels):
        return linear_divergence(hidden, student[1], *teacher[:2], "jsd", labels=labels)

    compiled = torch.compile(function, fullgraph=True, backend=BACKEND)
    assert compiled(student[0], rows["labels"]).isfinite()
    with pytest.raises(ValueError, match="labels: found 21"):
        compiled(student[0], rows["labels"] * 0 + 21)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(reduction, dtype):
    student, teacher, rows = case(dtype)
    logits, teacher_logits = torch.randn(2, 3, 23, dtype=dtype, requires_grad=True), torch.randn(2, 3, 21, dtype=dtype)
    ids, values = torch.arange(4).expand(2, 3, 4), torch.full((2, 3, 4), -2.0)
    shared = (rows["labels"], rows["row_weight"], None, -100, reduction)
    products, settings = (None, None, None), _ordered(OPTIONS)
    torch.library.opcheck(_divergence, (logits, teacher_logits, *shared, *settings, [True]))
    rest, wanted = (*shared, *products, *settings), [True, True, True, False, False]
    torch.library.opcheck(_linear, (*student, None, None, 1.0, *teacher, *rest, wanted))
    torch.library.opcheck(_sparse, (*student, None, None, 1.0, ids, values, "bucket", *rest, wanted))


def test_opcheck_with_frozen_parts():
    student, teacher, rows = case(torch.bfloat16, bias=False)
    student[1].requires_grad_(False)
    shared = (rows["labels"], None, None, -100, "sum", None, 64, None)
    wanted = [True, False, False, False, False]
    torch.library.opcheck(_linear, (*student, None, None, 1.0, *teacher, *shared, *_ordered(OPTIONS), wanted))
