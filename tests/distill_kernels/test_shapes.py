"""Any shape, stride, chunk and mask: the ops are what the definition says in float64."""

import torch
from distill_kernels import divergence, linear_divergence, linear_sparse_divergence
from distill_kernels.settings import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import dense_loss, sparse_loss

# N rows, H hidden sizes, V vocabularies, K token ids


@st.composite
def scenes(draw):
    """Two models of any sizes, some of their tensors strided, rows in one or two dimensions, some masked."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    leading = draw(st.lists(st.integers(0, 5), min_size=1, max_size=2))
    sizes = {name: draw(st.integers(1, 40)) for name in ("H_s", "H_t", "V_s", "V_t")}

    def tensor(*shape):
        layout = draw(st.sampled_from(["plain", "every second", "transposed"]))
        if layout == "every second":
            return torch.randn(*shape[:-1], 2 * shape[-1], generator=generator, dtype=torch.float64)[..., ::2]
        if layout == "transposed":
            turned = torch.randn(*shape[::-1], generator=generator, dtype=torch.float64)
            return turned.permute(*reversed(range(len(shape))))
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student = [tensor(*leading, sizes["H_s"]), tensor(sizes["V_s"], sizes["H_s"]), None]
    teacher = [tensor(*leading, sizes["H_t"]), tensor(sizes["V_t"], sizes["H_t"])]
    if draw(st.booleans()):
        student[2] = tensor(sizes["V_s"])
    shared = min(sizes["V_s"], sizes["V_t"])
    labels = torch.randint(0, shared, leading, generator=generator)
    masked = torch.rand(*leading, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    options = {
        "labels": labels.masked_fill(masked, -100),
        "row_weight": torch.rand(*leading, generator=generator),
        "hard_weight": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "temperature": draw(st.sampled_from([0.5, 1.0, 3.0])),
        "student_softcap": draw(st.sampled_from([None, 5.0])),
    }
    return student, teacher, options, draw(st.sampled_from(KINDS)), draw(st.sampled_from([1, 500, None])), generator


def logits(hidden, head, bias=None):
    return torch.nn.functional.linear(hidden, head, bias)


def compare(found_rows, expected_rows, students):
    """Rows, and the gradients by every tensor of the student from an arbitrary incoming gradient."""
    torch.testing.assert_close(found_rows, expected_rows, rtol=1e-9, atol=1e-9)
    upstream = torch.linspace(-1, 2, found_rows.numel(), dtype=torch.float64).view(found_rows.shape)
    leaves = [tensor for tensor in students if tensor is not None]
    pair = [torch.autograd.grad(rows, leaves, upstream, retain_graph=True) for rows in (found_rows, expected_rows)]
    for mine, right in zip(*pair, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-7, atol=1e-9)


@settings(deadline=None, max_examples=150)
@given(scenes())
def test_dense(scene):
    student, teacher, options, kind, chunk_bytes, _ = scene
    for tensor in student:
        if tensor is not None:
            tensor.requires_grad_()
    hidden, head, bias = student
    rows = linear_divergence(
        hidden, head, *teacher, kind, student_bias=bias, chunk_bytes=chunk_bytes, reduction="none", **options
    )
    expected = dense_loss(logits(*student), logits(*teacher), kind, **options)
    compare(rows, expected, student)
    total = linear_divergence(hidden, head, *teacher, kind, student_bias=bias, chunk_bytes=chunk_bytes, **options)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-9, atol=1e-9)
    ready = divergence(logits(*student), logits(*teacher), kind, reduction="none", **options)
    torch.testing.assert_close(ready, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=150)
@given(scenes(), st.data())
def test_sparse(scene, data):
    student, _, options, kind, chunk_bytes, generator = scene
    hidden, head, bias = student
    num_tokens, leading = len(head), hidden.shape[:-1]
    options["labels"] = options["labels"].clamp(max=num_tokens - 1)
    for tensor in student:
        if tensor is not None:
            tensor.requires_grad_()
    num_ids = data.draw(st.integers(1, num_tokens))
    tail = data.draw(st.sampled_from(["bucket", "told", "zero", "renormalize", "uniform", "sampled"]))
    kind = kind if tail in ("bucket", "told") else "forward_kl"
    teacher = (2 * torch.randn(*leading, num_tokens, generator=generator, dtype=torch.float64)).log_softmax(-1)
    ids = torch.rand(*leading, num_tokens, generator=generator).argsort(-1)[..., :num_ids]
    values = teacher.gather(-1, ids)
    if tail == "sampled":
        values = torch.rand(*leading, num_ids, generator=generator, dtype=torch.float64)
    elif tail == "told":
        # a rest of nothing has the smallest float's logarithm here and none in the definition: keep one token back
        ids, values = ids[..., : max(1, num_ids - 1)], values[..., : max(1, num_ids - 1)]
        rest = teacher.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        values = torch.cat([values, rest if num_tokens > 1 else torch.zeros_like(rest)], -1)
    tail = "bucket" if tail == "told" else tail
    rows = linear_sparse_divergence(
        hidden, head, ids.int(), values, kind, tail=tail, student_bias=bias, chunk_bytes=chunk_bytes, reduction="none",
        **options,
    )  # fmt: skip
    flat = {**options, "labels": options["labels"].flatten(), "row_weight": options["row_weight"].flatten()}
    at_once = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (logits(*student), ids, values)]
    if not len(at_once[0]):
        assert rows.numel() == 0
        return
    compare(rows, sparse_loss(*at_once, kind, tail, **flat).view(leading), student)
