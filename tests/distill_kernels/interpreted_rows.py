"""The row kernels in Triton's interpreter, on the CPU: accuracy, addresses, adversarial rows, what they leave alone.

Triton decides at import whether it interprets, so test_triton_rows.py runs these in a process of their own:

    DISTILL_KERNELS=triton TRITON_INTERPRET=1 python -m pytest tests/distill_kernels/interpreted_rows.py

The interpreter cuts float32 to bfloat16 where a GPU rounds, so bfloat16 gradients may be one unit in the last place
further off here.
"""

import itertools
import math

import pytest
import torch
from distill_kernels import divergence, linear_divergence, linear_sparse_divergence
from distill_kernels.dense import dense_rows
from distill_kernels.settings import KINDS, Settings
from distill_kernels.softened import Workspace
from distill_kernels.sparse import sparse_rows
from oracle import dense_loss, sparse_loss

OPTIONS = [
    {},
    {"temperature": 2.0},
    {"student_softcap": 5.0, "teacher_softcap": 4.0, "student_scale": 1.3, "teacher_scale": 0.8, "temperature": 1.5},
    {"hard_weight": 0.3},
    {"hard_weight": 0.4, "temperature": 3.0, "student_softcap": 30.0, "beta": 0.1, "alpha": 0.4},
]
UNITS = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles so small that a row of 520 has several."""
    for module in ("triton_dense", "triton_sparse"):
        shape = f"distill_kernels.{module}.tile_shape"
        monkeypatch.setattr(shape, lambda num_tokens: (256 if num_tokens < 1024 else 1024, 4))
    monkeypatch.setattr("distill_kernels.triton_dense._BUSY_PROGRAMS", 1)  # rows are not split


def case(num_rows, num_tokens, dtype=torch.float32, spread=3.0):
    student, teacher = ((torch.randn(num_rows, num_tokens) * spread).to(dtype) for _ in range(2))
    return student, teacher, torch.randint(0, num_tokens, (num_rows,)), torch.rand(num_rows)


def truth(student, teacher, labels, weight, kind, **options):
    exact = student.double().requires_grad_()
    loss = dense_loss(exact, teacher.double(), kind, labels=labels, row_weight=weight, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), exact)[0]


def by_kernel(student, teacher, labels, weight, kind, gradient, **options):
    from distill_kernels import triton_dense

    return triton_dense.dense_rows(student, teacher, labels, weight, Settings(kind=kind, **options), gradient)


def by_eager(monkeypatch, student, teacher, labels, weight, kind, gradient, **options):
    with monkeypatch.context() as patch:
        patch.setenv("DISTILL_KERNELS", "eager")
        workspace = Workspace(len(student), student.shape[1], torch.float32, student.device)
        return dense_rows(student, teacher, labels, weight, Settings(kind=kind, **options), workspace, gradient)


@pytest.mark.parametrize(("kind", "options"), itertools.product(KINDS, OPTIONS))
@pytest.mark.parametrize(("dtype", "num_tokens"), [(torch.float32, 1000), (torch.bfloat16, 331), (torch.float16, 264)])
def test_as_accurate_as_eager(monkeypatch, kind, options, dtype, num_tokens):
    student, teacher, labels, weight = case(2, num_tokens, dtype)
    expected, right = truth(student, teacher, labels, weight, kind, **options)
    found, eager = torch.full_like(student, 9.0), torch.empty_like(student)
    loss = by_kernel(student, teacher, labels, weight, kind, found, **options)
    eager_loss = by_eager(monkeypatch, student, teacher, labels, weight, kind, eager, **options)
    assert loss.dtype == torch.float32
    scale = options.get("temperature", 1.0) ** 2
    assert ((loss - expected).abs() <= (eager_loss - expected).abs() + 1e-6 * (scale + expected)).all()
    allowed = (eager - right).abs() + right.abs() * UNITS[dtype] + 2e-6 * scale
    assert ((found - right).abs() <= allowed).all(), ((found - right).abs() - allowed).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tokens", [1, 7, 256, 2049])
def test_any_number_of_tokens(kind, num_tokens):
    student, teacher, labels, weight = case(2, num_tokens)
    options = {"hard_weight": 0.2, "temperature": 1.7}
    expected, right = truth(student, teacher, labels, weight, kind, **options)
    found = torch.full_like(student, 9.0)
    loss = by_kernel(student, teacher, labels, weight, kind, found, **options)
    assert ((loss - expected).abs() <= 2e-6 * (1 + expected)).all()
    assert ((found - right).abs() <= 2e-6 + 4e-6 * expected.clamp(min=1)[:, None]).all()
    without = by_kernel(student, teacher, labels, weight, kind, None, **options)
    assert torch.equal(without, loss)


def laid_out(tensor, layout):
    """The same numbers elsewhere in memory."""
    rows, tokens = tensor.shape
    if layout == "tokens first":
        return torch.empty(tokens, rows, dtype=tensor.dtype).T.copy_(tensor)
    room = {"aligned": 0, "odd stride": 3, "every other row": tokens, "odd start": 1}[layout]
    wide = torch.full((rows, tokens + room), math.nan, dtype=tensor.dtype)
    view = wide[:, 1:] if layout == "odd start" else wide[:, :tokens]
    return view.copy_(tensor)


@pytest.mark.parametrize("layout", ["aligned", "odd stride", "every other row", "odd start", "tokens first"])
@pytest.mark.parametrize("teacher_layout", ["same", "aligned", "odd start"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides_give_the_same_bits(layout, teacher_layout, dtype):
    student, teacher, labels, weight = case(2, 520, dtype)
    plain = torch.empty_like(student)
    expected = by_kernel(student, teacher, labels, weight, "jsd", plain, hard_weight=0.1)
    moved = laid_out(student, layout)
    moved_teacher = laid_out(teacher, layout if teacher_layout == "same" else teacher_layout)
    around = moved._base.clone() if moved._base is not None else None
    loss = by_kernel(moved, moved_teacher, labels, weight, "jsd", moved, hard_weight=0.1)  # in place
    # a row that starts inside 16 bytes is cut into other tiles, so its sums have another order
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(moved, plain, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)
    if around is not None and layout in ("odd stride", "every other row", "odd start"):
        outside = torch.ones(around.shape[1], dtype=torch.bool)
        outside[1 if layout == "odd start" else 0 :][:520] = False
        assert moved._base[:, outside].isnan().all(), "the kernel wrote outside its row"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_32_bits_with_a_gradient_of_16(kind, dtype):
    """What a linear op asks on a GPU: every row begins at a multiple of 64 tokens, whatever their number is."""
    student, teacher, labels, weight = case(3, 777)
    options = {"hard_weight": 0.3, "temperature": 1.5}
    expected, right = truth(student, teacher, labels, weight, kind, **options)
    rows, rows_of_teacher, gradient = (torch.full((3, 832), math.nan, dtype=d)[:, :777] for d in (None, None, dtype))
    rows.copy_(student)
    rows_of_teacher.copy_(teacher)
    loss = by_kernel(rows, rows_of_teacher, labels, weight, kind, gradient, **options)
    assert torch.equal(rows, student)
    assert ((loss - expected).abs() <= 2e-6 * (2.25 + expected)).all()
    assert ((gradient - right).abs() <= right.abs() * UNITS[dtype] + 5e-6).all()
    assert gradient._base[:, 777:].isnan().all()


def test_runs_are_equal_and_leave_inputs_alone():
    student, teacher, labels, weight = case(3, 1000, torch.bfloat16)
    copies = [tensor.clone() for tensor in (student, teacher)]
    runs = []
    for _ in range(2):
        gradient = torch.empty_like(student)
        runs.append((by_kernel(student, teacher, labels, weight, "reverse_kl", gradient), gradient))
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    assert torch.equal(student, copies[0]) and torch.equal(teacher, copies[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["aligned", "odd start"])
def test_programs_that_share_a_row(monkeypatch, kind, layout):
    """Three programs a row, in place, with a label of temperature 1 and a row that one of them sees nothing of."""
    student, teacher, labels, weight = case(3, 777)
    student[1, 256:512] = -math.inf
    teacher[1, 256:512] = -math.inf
    labels[1] = 3
    options = {"hard_weight": 0.3, "temperature": 1.5}
    plain, moved = torch.empty_like(student), laid_out(student, layout)
    moved_teacher = laid_out(teacher, layout)
    expected = by_kernel(student, teacher, labels, weight, kind, plain, **options)
    monkeypatch.setattr("distill_kernels.triton_dense._BUSY_PROGRAMS", 9)
    loss = by_kernel(moved, moved_teacher, labels, weight, kind, moved, **options)
    assert expected.isfinite().all()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [1, 4096, 11_000])
def test_a_gradient_is_scaled_in_place_by_what_comes_in(monkeypatch, size, dtype):
    from distill_kernels import triton_scale

    monkeypatch.setattr(triton_scale, "_PROGRAMS", 2)
    gradient = torch.randn(size).to(dtype)
    for factor in (1.0, 0.37, 0.0, -2.0):
        found = gradient.clone()
        assert triton_scale.scale_(found, torch.tensor(factor, dtype=torch.float64)) is found
        assert torch.equal(found, (gradient.float() * torch.tensor(factor)).to(dtype)), factor


def test_a_graph_that_is_walked_twice_gives_each_its_own_gradient():
    student, teacher = torch.randn(3, 300, requires_grad=True), torch.randn(3, 300)
    loss = divergence(student, teacher, "jsd")
    (first,) = torch.autograd.grad(0.5 * loss, student, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * loss, student)
    assert torch.equal(first, kept)
    torch.testing.assert_close(second, 6 * first, rtol=1e-5, atol=1e-8)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, student)


def test_rows_that_do_not_count_are_not_read():
    student, teacher, labels, _ = case(5, 300)
    labels[1], labels[3] = -100, -100
    student[1], teacher[3] = math.nan, math.nan
    student.requires_grad_()
    weight = torch.rand(5)
    loss = divergence(student, teacher, "jsd", labels=labels, row_weight=weight, hard_weight=0.5, reduction="none")
    loss.sum().backward()
    counted = [0, 2, 4]
    expected, right = truth(
        student.detach()[counted], teacher[counted], labels[counted], weight[counted], "jsd", hard_weight=0.5
    )
    assert (loss[[1, 3]] == 0).all() and (student.grad[[1, 3]] == 0).all()
    torch.testing.assert_close(loss[counted].double(), expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(student.grad[counted].double(), right, rtol=1e-4, atol=2e-6)


def test_a_label_that_is_no_token_gives_nan_in_its_row():
    student, teacher, labels, weight = case(3, 300)
    labels[1] = 300
    assert by_kernel(student, teacher, labels, weight, "jsd", None, hard_weight=0.5).isnan().tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_linear_op_takes_the_kernel(monkeypatch, kind):
    hidden, head = torch.randn(5, 8, requires_grad=True), torch.randn(301, 8, requires_grad=True)
    teacher = torch.randn(5, 6), torch.randn(299, 6)
    options = {"labels": torch.tensor([3, -100, 298, 0, 7]), "hard_weight": 0.2, "chunk_bytes": 2 * 600 * 4}
    results = []
    for implementation in ("triton", "eager"):
        monkeypatch.setenv("DISTILL_KERNELS", implementation)
        loss = linear_divergence(hidden, head, *teacher, kind, **options)
        results.append([loss, *torch.autograd.grad(loss, [hidden, head])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


TAILS = [("bucket", kind) for kind in KINDS]
TAILS += [(tail, "forward_kl") for tail in ("zero", "renormalize", "uniform", "sampled")]


def sparse_case(num_rows, num_tokens, num_ids, tail, dtype):
    student = (torch.randn(num_rows, num_tokens) * 2).to(dtype)
    ids = torch.stack([torch.randperm(num_tokens)[:num_ids] for _ in range(num_rows)])
    values = (torch.randn(num_rows, num_tokens) * 2).log_softmax(-1).gather(1, ids)
    if num_ids > 1:
        ids[1, -1] = -1
        ids[2, 1:] = -1
    if tail == "sampled":
        values = torch.rand(num_rows, num_ids)
    if tail == "told":  # no rest but rounding where all tokens are kept
        rest = (1 - values.double().exp().masked_fill(ids < 0, 0.0).sum(1, keepdim=True)).clamp(min=1e-12)
        values = torch.cat([values, rest.log().float()], 1)
    return student, ids.int(), values


@pytest.mark.parametrize(("tail", "kind"), TAILS + [("told", kind) for kind in KINDS])
@pytest.mark.parametrize("options", OPTIONS[:1] + OPTIONS[4:])
@pytest.mark.parametrize(
    ("dtype", "num_tokens", "num_ids"), [(torch.float32, 601, 40), (torch.bfloat16, 600, 1), (torch.float32, 9, 9)]
)
def test_sparse(tail, kind, options, dtype, num_tokens, num_ids):
    from distill_kernels import triton_sparse

    student, ids, values = sparse_case(3, num_tokens, num_ids, tail, dtype)
    tail = "bucket" if tail == "told" else tail
    labels, weight = torch.tensor([int(ids[0, 0]), num_tokens - 1, 0]), torch.rand(3)
    exact = student.double().requires_grad_()
    expected = sparse_loss(exact, ids, values, kind, tail, labels=labels, row_weight=weight, **options)
    (right,) = torch.autograd.grad(expected.sum(), exact)
    expected = expected.detach()
    settings = Settings(kind=kind, **options)
    buffer, elsewhere, unwanted = (student.clone() for _ in range(3))
    arguments = (ids, values, tail, labels, weight, settings)
    loss = triton_sparse.sparse_rows(buffer, *arguments, buffer)
    separate = torch.full_like(student, 9.0)
    assert torch.equal(triton_sparse.sparse_rows(elsewhere, *arguments, separate), loss)
    assert torch.equal(triton_sparse.sparse_rows(unwanted, *arguments), loss)
    assert torch.equal(separate, buffer)
    scale = options.get("temperature", 1.0) ** 2
    assert ((loss - expected).abs() <= 3e-6 * (scale + expected.abs())).all(), (loss - expected).abs().max()
    allowed = right.abs() * UNITS[dtype] + 4e-6 * scale * expected.abs().clamp(min=1)[:, None]
    assert ((buffer - right).abs() <= allowed).all(), ((buffer - right).abs() - allowed).max()


@pytest.mark.parametrize(("tail", "kind"), TAILS)
def test_sparse_logits_of_32_bits_with_a_gradient_of_16(tail, kind):
    from distill_kernels import triton_sparse

    student, ids, values = sparse_case(3, 600, 40, tail, torch.float32)
    weight = torch.rand(3)
    exact = student.double().requires_grad_()
    expected = sparse_loss(exact, ids, values, kind, tail, row_weight=weight)
    (right,) = torch.autograd.grad(expected.sum(), exact)
    gradient = torch.full((3, 640), math.nan, dtype=torch.float16)[:, :600]
    loss = triton_sparse.sparse_rows(student, ids, values, tail, None, weight, Settings(kind=kind), gradient)
    assert ((loss - expected).abs() <= 3e-6 * (1 + expected.abs())).all()
    assert ((gradient - right).abs() <= right.abs() * UNITS[torch.float16] + 4e-6 * (1 + expected.abs()[:, None])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_a_student_that_is_sure_is_exact(kind):
    """Its probability is 1e-130, which float32 has no number for; its logarithm and its gradient have."""
    from distill_kernels import triton_sparse

    student = torch.randn(1, 40)
    student[0, 4] = 300.0
    exact = student.double().requires_grad_()
    ids, values = torch.tensor([[4, 2]]), torch.tensor([[0.6, 0.3]]).log()
    expected = sparse_loss(exact, ids, values, kind, "bucket")
    (right,) = torch.autograd.grad(expected.sum(), exact)
    loss = triton_sparse.sparse_rows(student, ids, values, "bucket", None, None, Settings(kind=kind), student)
    assert ((loss - expected).abs() <= 2e-6 * (1 + expected)).all()
    assert ((student - right).abs() <= 3e-6 * (1 + expected)).all()


@pytest.mark.parametrize("tail", ["bucket", "uniform", "zero", "renormalize", "sampled"])
def test_ids_that_repeat_or_lie_outside_give_nan_in_their_row(tail):
    """Cut to 32 bits, the ids of the last three would be 2, -1 and 2."""
    far = [[2**32 + 2, 1], [1, 2**32 - 1], [1, 2 - 2**32]]
    ids = torch.tensor([[1, 2], [3, 3], [1, 40], [0, -1], [1, -2], *far])
    values = torch.full((8, 2), 0.5 if tail == "sampled" else -1.0)
    student = torch.randn(8, 40)
    workspace = Workspace(8, 40, torch.float32, student.device)
    loss = sparse_rows(student, ids, values, tail, None, None, Settings(kind="forward_kl"), workspace, student)
    assert loss.isnan().tolist() == [False, tail != "sampled", True, False, True, True, True, True]


def test_a_label_beyond_32_bits_gives_nan_in_its_row():
    from distill_kernels import triton_dense, triton_sparse

    labels, settings = torch.tensor([3, 2**32 + 3, 3 - 2**32]), Settings(kind="forward_kl", hard_weight=0.5)
    student, teacher = torch.randn(3, 40), torch.randn(3, 40)
    loss = triton_dense.dense_rows(student, teacher, labels, None, settings)
    assert loss.isnan().tolist() == [False, True, True]
    ids, values = torch.tensor([[1, 2]] * 3), torch.full((3, 2), -1.0)
    loss = triton_sparse.sparse_rows(student, ids, values, "zero", labels, None, settings)
    assert loss.isnan().tolist() == [False, True, True]


def test_too_many_ids_are_refused():
    ids, values = torch.arange(2048).expand(2, -1), torch.full((2, 2048), -9.0)
    with pytest.raises(ValueError, match="2048 ids per row"):
        linear_sparse_divergence(torch.randn(2, 3), torch.randn(3000, 3), ids, values)
