"""The ops on a GPU, eager and in triton, against the float64 oracle; skipped where there is none."""

import importlib.util
from pathlib import Path

import pytest
import torch
from distill_kernels import divergence, linear_divergence, linear_sparse_divergence
from distill_kernels.settings import Settings
from oracle import dense_loss, sparse_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

KINDS = ("forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd")
ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-23}


@pytest.fixture(autouse=True, params=["eager", "triton", "streaming"])
def implementation(request, monkeypatch):
    """With "triton" a cluster holds every row that one can; tests have too few rows to be given clusters otherwise."""
    if request.param != "eager" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if request.param == "triton":
        monkeypatch.setattr("distill_kernels.triton_dense._BUSY_CLUSTER_PROGRAMS", 1)
    monkeypatch.setenv("DISTILL_KERNELS", request.param)
    return request.param


def logits(num_rows, num_tokens, dtype):
    """Student's and teacher's, of the size that trained models have, some tenths of a nat apart."""
    teacher = torch.randn(num_rows, num_tokens) * 3
    student = teacher + torch.randn(num_rows, num_tokens) * 0.7
    return student.to(dtype), teacher.to(dtype)


def hidden(num_rows, num_tokens, size, dtype):
    """Hidden states and heads, student's and teacher's, whose logits have a standard deviation of 3."""
    states, head = torch.randn(num_rows, size), torch.randn(num_tokens, size) * 3 / size**0.5
    near = states + torch.randn(num_rows, size) * 0.2
    return [tensor.to(dtype) for tensor in (near, head.clone(), states, head)]


def far_by_two_norm(found, exact):
    return ((found.double().cpu() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [7, 4097, 32_001, 128_256])
@pytest.mark.parametrize("kind", KINDS)
def test_logits(kind, num_tokens, dtype):
    student, teacher = logits(5, num_tokens, dtype)
    exact = student.double().requires_grad_()
    expected = dense_loss(exact, teacher.double(), kind)
    (right,) = torch.autograd.grad(expected.sum(), exact)
    here = student.cuda().requires_grad_()
    rows = divergence(here, teacher.cuda(), kind, reduction="none")
    assert ((rows.cpu() - expected).abs() <= 1e-6 * (1 + expected)).all()
    divergence(here, teacher.cuda(), kind).backward()
    size = expected.detach().clamp(min=1)[:, None]
    allowed = (1e-6 + 2e-6 * size) + ULP[dtype] * right.abs()
    assert ((here.grad.cpu().double() - right).abs() <= allowed).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_at_once(kind):
    student, teacher = logits(9, 1003, torch.float32)
    teacher = torch.cat([teacher, torch.randn(9, 20)], -1)
    labels = torch.randint(0, 1003, (9,))
    labels[::4] = -100
    options = {"temperature": 2.0, "hard_weight": 0.3, "student_scale": 0.8, "student_softcap": 20.0}
    options |= {"teacher_softcap": 25.0, "teacher_scale": 1.1}
    exact, weight = student.double().requires_grad_(), torch.rand(9)
    expected = dense_loss(exact, teacher.double(), kind, labels=labels, row_weight=weight, **options)
    (right,) = torch.autograd.grad(3 * expected.sum(), exact)
    here = student.cuda().requires_grad_()
    options |= {"labels": labels.cuda(), "row_weight": weight.cuda()}
    rows = divergence(here, teacher.cuda(), kind, reduction="none", **options)
    torch.testing.assert_close(rows.cpu().double(), expected, rtol=2e-6, atol=4e-6)
    (3 * divergence(here, teacher.cuda(), kind, **options)).backward()
    torch.testing.assert_close(here.grad.cpu().double(), right, rtol=2e-5, atol=2e-5)
    assert (here.grad[::4] == 0).all()


def off_by(loss, gradients, expected, right):
    """Relative errors of a loss and of its gradients in the 2-norm."""
    return [abs(loss.item() / expected.item() - 1), *map(far_by_two_norm, gradients, right)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["forward_kl", "jsd", "skew_reverse_kl"])
@pytest.mark.parametrize("chunk_bytes", [None, 2**20])
def test_linear(kind, dtype, chunk_bytes):
    tensors = hidden(300, 5003, 256, dtype)
    exact = [tensor.double().requires_grad_() for tensor in tensors[:2]]
    expected = dense_loss(exact[0] @ exact[1].T, tensors[2].double() @ tensors[3].double().T, kind).sum()
    right = torch.autograd.grad(expected, exact)
    here = [tensor.cuda() for tensor in tensors]
    for tensor in here[:2]:
        tensor.requires_grad_()
    loss = linear_divergence(*here, kind, chunk_bytes=chunk_bytes)
    found = off_by(loss, torch.autograd.grad(loss, here[:2]), expected, right)
    if dtype == torch.float32:
        assert max(found) <= 2e-5
        return
    # logits are float32: 16-bit ones would be off by 1e-3 in the loss and 4e-2 in the gradients
    mean = expected.item() / 300  # a row is promised within 1e-6 (1 + loss): the kernels' logarithms may all err alike
    assert found[0] <= 1e-6 * (1 + 1 / mean) and max(found[1:]) <= 4e-3


@pytest.mark.parametrize("tail", ["bucket", "told", "zero", "renormalize", "uniform", "sampled"])
def test_sparse(tail):
    student, head, *_ = hidden(40, 3001, 128, torch.float32)
    top = (student @ head.T).log_softmax(-1).topk(16)
    ids, values = top.indices.int(), top.values.exp() if tail == "sampled" else top.values
    if tail == "told":
        tail, values = "bucket", torch.cat([values, (1 - values.exp().sum(1, keepdim=True)).clamp(min=1e-9).log()], 1)
    exact = [tensor.double().requires_grad_() for tensor in (student, head)]
    expected = sparse_loss(exact[0] @ exact[1].T, ids, values, "forward_kl", tail)
    right = torch.autograd.grad(expected.sum(), exact)
    here = [tensor.cuda().requires_grad_() for tensor in (student, head)]
    loss = linear_sparse_divergence(*here, ids.cuda(), values.cuda(), tail=tail, reduction="none")
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(linear_sparse_divergence(*here, ids.cuda(), values.cuda(), tail=tail), here)
    for gradient, exact_gradient in zip(found, right, strict=True):
        torch.testing.assert_close(gradient.cpu().double(), exact_gradient, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("tail", ["bucket", "uniform", "zero", "renormalize", "sampled"])
def test_ids_that_repeat_or_lie_outside_give_nan_in_their_row(tail):
    ids = torch.tensor([[1, 2], [3, 3], [1, 400], [0, -1], [1, -2], [2**32 + 2, 1], [1, 2**32 - 1]], device="cuda")
    values = torch.full((7, 2), 0.5 if tail == "sampled" else -1.0, device="cuda")
    here = [torch.randn(*shape, device="cuda") for shape in ((7, 8), (400, 8))]
    loss = linear_sparse_divergence(*here, ids, values, tail=tail, reduction="none")
    assert loss.isnan().tolist() == [False, tail != "sampled", True, False, True, True, True]


def test_equal_from_run_to_run():
    here = [tensor.cuda() for tensor in hidden(700, 32_001, 128, torch.bfloat16)]
    for tensor in here[:2]:
        tensor.requires_grad_()

    def run():
        loss = linear_divergence(*here, "jsd", chunk_bytes=2**24)
        return [loss.detach(), *torch.autograd.grad(loss, here[:2])]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_a_row_of_nan_and_rows_far_away(implementation):
    student, teacher = (tensor.cuda() for tensor in logits(6, 4099, torch.float32))
    alone = divergence(student, teacher, "jsd", reduction="none")
    student[1] += 1e4
    student[2, 5] = float("nan")
    student[3] = teacher[3]
    rows = divergence(student, teacher, "jsd", reduction="none")
    # the kernels' reciprocals and logarithms may add 2e-7 (README.md)
    assert rows[2].isnan() and rows[3].abs() <= (1e-7 if implementation == "eager" else 3e-7)
    # at 1e4 a float32 logit has three digits after the point
    torch.testing.assert_close(rows[1], alone[1], rtol=2e-3, atol=0)
    assert torch.equal(rows[[0, 4, 5]], alone[[0, 4, 5]])


def test_nothing_waits_for_the_device():
    tensors = [tensor.cuda().requires_grad_() for tensor in hidden(64, 2001, 64, torch.bfloat16)]
    student, teacher = (tensor.cuda().requires_grad_() for tensor in logits(64, 2001, torch.bfloat16))
    steps = [lambda: linear_divergence(*tensors, "jsd"), lambda: divergence(student, teacher.detach(), "forward_kl")]
    for step in steps:
        step().backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_compiled():
    student, teacher = (tensor.cuda() for tensor in logits(33, 5001, torch.float32))
    student.requires_grad_()

    def loss(student, teacher):
        return 3 * divergence(student * 1.5, teacher, "forward_kl")

    (right,) = torch.autograd.grad(loss(student, teacher), student)
    (found,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(student, teacher), student)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("linear", [False, True])
def test_captured_in_a_graph(linear, labelled):
    if linear:
        here = [tensor.cuda() for tensor in hidden(128, 4001, 64, torch.bfloat16)]
        other = [tensor.cuda() for tensor in hidden(128, 4001, 64, torch.bfloat16)]
    else:
        here, other = ([tensor.cuda() for tensor in logits(64, 32_001, torch.bfloat16)] for _ in range(2))
    wanted = here[: 2 if linear else 1]
    for tensor in wanted:
        tensor.requires_grad_()
    labels, other_labels = (torch.randint(0, 4001, here[0].shape[:1], device="cuda") for _ in range(2))
    labels[::4] = -100
    other_labels[::3] = -100  # another number of rows that count
    options = {"labels": labels, "hard_weight": 0.5} if labelled else {}

    def step():
        loss = linear_divergence(*here, "jsd", **options) if linear else divergence(*here, "forward_kl", **options)
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    for tensor in wanted:
        tensor.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    with torch.no_grad():
        for tensor, fresh in zip([*here, labels], [*other, other_labels], strict=True):
            tensor.copy_(fresh)
    graph.replay()
    replayed = [loss.clone(), *(tensor.grad.clone() for tensor in wanted)]
    for tensor in wanted:
        tensor.grad = None
    direct = [step().detach(), *(tensor.grad for tensor in wanted)]
    for a, b in zip(replayed, direct, strict=True):
        torch.testing.assert_close(a, b)


def test_more_than_two_billion_logits():
    num_rows, num_tokens = 16_800, 128_256
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    teacher = torch.randn(1, num_tokens, device="cuda").to(torch.bfloat16)
    student = torch.zeros(num_rows, num_tokens, dtype=torch.bfloat16, device="cuda")
    student[-1] = torch.randn(num_tokens, device="cuda")
    student.requires_grad_()
    rows = divergence(student, teacher.expand(num_rows, -1), "forward_kl", reduction="none")
    alone = student.detach()[-1:].requires_grad_()
    last = divergence(alone, teacher, "forward_kl")
    torch.testing.assert_close(rows[-1], last.detach(), rtol=1e-6, atol=1e-6)
    (found,) = torch.autograd.grad(divergence(student, teacher.expand(num_rows, -1), "forward_kl"), student)
    torch.testing.assert_close(found[-1], torch.autograd.grad(last, alone)[0][0])
    assert torch.equal(found[0], found[-2])


def test_the_tests_ran_with_kernels_of_this_checkout():
    import distill_kernels

    assert Path(distill_kernels.__file__).parents[2] == Path(__file__).parents[2]


def by_kernel(student, teacher, kind, *, in_place, labels=None, **options):
    """Losses and the gradient, which lies over the student's logits or in a tensor of its own."""
    student = student.clone()
    gradient = student if in_place else torch.full_like(student, float("nan"))
    weight = torch.linspace(0.5, 2.0, len(student), device="cuda")
    loss = triton_dense().dense_rows(student, teacher, labels, weight, Settings(kind=kind, **options), gradient)
    return loss, gradient


def triton_dense():
    from distill_kernels import triton_dense

    return triton_dense


@pytest.fixture
def clusters(implementation, monkeypatch):
    """The rows of each launch of the resident kernel."""
    if implementation != "triton":
        pytest.skip("of the resident kernel")
    from distill_kernels.triton_resident import has_clusters

    if not has_clusters(torch.device("cuda")):
        pytest.skip("needs Triton 3.8 and compute capability 9")
    launched, launch = [], triton_dense().launch_clusters

    def counted(student_CV, *rest):
        launched.append(len(student_CV))
        return launch(student_CV, *rest)

    monkeypatch.setattr("distill_kernels.triton_dense.launch_clusters", counted)
    return launched


@pytest.mark.parametrize("num_tokens", [9, 32_000, 50_257, 128_256, 151_936])
@pytest.mark.parametrize("kind", KINDS)
def test_held_rows_against_streamed_ones(clusters, monkeypatch, kind, num_tokens):
    """More rows than there are clusters at once, the same bits in place and from run to run, some rows not read."""
    student, teacher = (tensor.cuda() for tensor in logits(97, num_tokens, torch.bfloat16))
    labels = torch.arange(97, device="cuda") % num_tokens
    options = {"labels": labels, "hard_weight": 0.25, "temperature": 1.5}
    held = by_kernel(student, teacher, kind, in_place=False, **options)
    assert clusters == [97]
    for _ in range(5):
        again = by_kernel(student, teacher, kind, in_place=True, **options)
        assert all(torch.equal(*pair) for pair in zip(held, again, strict=True))
    monkeypatch.setenv("DISTILL_KERNELS", "streaming")
    streamed = by_kernel(student, teacher, kind, in_place=False, **options)
    assert len(clusters) == 6
    torch.testing.assert_close(held[0], streamed[0], rtol=4e-6, atol=4e-6)
    torch.testing.assert_close(held[1].float(), streamed[1].float(), rtol=2**-7, atol=1e-5)
    few = slice(0, 97, 24)
    exact = student[few].double().cpu().requires_grad_()
    options |= {"labels": labels[few].cpu(), "row_weight": torch.linspace(0.5, 2.0, 97)[few]}
    expected = dense_loss(exact, teacher[few].double().cpu(), kind, **options)
    (right,) = torch.autograd.grad(expected.sum(), exact)
    assert ((held[0][few].cpu() - expected).abs() <= 3e-6 * (1 + expected)).all()
    allowed = ULP[torch.bfloat16] * right.abs() + 6e-6 * expected.detach().clamp(min=1)[:, None]
    assert ((held[1][few].cpu().double() - right).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_held_rows_leave_their_neighbours_alone(clusters, dtype, softcap):
    """Rows of an odd length inside a wider matrix, in place; some are not to be read, one is NaN."""
    student, teacher = logits(40, 30_003, dtype)
    labels = torch.arange(40)
    labels[::5] = -100
    student[7, 29_000] = float("nan")
    wide = [torch.full((40, 30_011), 7.0, dtype=dtype, device="cuda") for _ in range(2)]
    views = [matrix[:, 3:30_006].copy_(tensor) for matrix, tensor in zip(wide, (student, teacher), strict=True)]
    settings = Settings(kind="skew_reverse_kl", student_softcap=softcap)
    options = {"gradient_CV": views[0], "ignore_index": -100}
    loss = triton_dense().dense_rows(*views, labels.cuda(), None, settings, **options).cpu()
    assert clusters == [40]
    counted = (labels != -100) & (torch.arange(40) != 7)
    expected = dense_loss(student.double(), teacher.double(), "skew_reverse_kl", student_softcap=softcap)
    assert ((loss - expected).abs()[counted] <= 1e-6 * (1 + expected[counted])).all()
    assert loss[7].isnan() and (loss[::5] == 0).all()
    assert torch.equal(views[0][::5].cpu(), student[::5])
    assert all((matrix[:, :3] == 7).all() and (matrix[:, 30_006:] == 7).all() for matrix in wide)
    assert torch.equal(views[1].cpu(), teacher)
