"""Rows held by a cluster, in Triton's interpreter: tile boundaries, adversarial rows, dtypes, and that they are held.

test_resident_rows.py runs these in a process of their own, as interpreted_rows.py says, with `-p clustered_rows`:
tiles of 512 tokens. The interpreter has one program for a cluster: this shows the arithmetic, not the exchange.
"""

import math
import os

import pytest
import torch
from distill_kernels import triton_dense
from distill_kernels.dense import dense_rows
from distill_kernels.settings import KINDS, Settings
from distill_kernels.softened import Workspace
from distill_kernels.triton_resident_table import cluster_for
from interpreted_rows import UNITS, by_kernel, case, truth

CAPS = {"student_softcap": 30.0, "teacher_softcap": 20.0, "teacher_scale": 0.5}
OPTIONS = {"hard_weight": 0.2, "temperature": 1.5, "student_softcap": 9.0}


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """How many rows each launch of the resident kernel had; there must be one."""
    counts, launch = [], triton_dense.launch_clusters

    def counted(student_CV, *rest):
        counts.append(len(student_CV))
        return launch(student_CV, *rest)

    monkeypatch.setattr(triton_dense, "launch_clusters", counted)
    yield counts
    assert counts


def agrees(loss, gradient, expected, right, unit):
    """Within the accuracy promised of float64, infinite where that is, and with no gradient where there is none."""
    finite = expected.isfinite()
    assert torch.equal(loss[~finite], expected[~finite].float())
    assert ((loss - expected).abs()[finite] <= 1e-6 * (1 + expected[finite])).all()
    size = expected[finite].clamp(min=1)[:, None]
    allowed = unit * right[finite].abs() + 2e-6 * size
    assert ((gradient[finite] - right[finite]).abs() <= allowed).all()


def adversarial_rows(num_tokens):
    """Nothing in the first tile, nothing but there, far away, far apart, equal, one-hot."""
    student, teacher, labels, weight = case(9, num_tokens)
    student[0, -600:] = teacher[0, -600:] = -math.inf
    student[1, :600] = teacher[1, :600] = -math.inf
    student[2, 1:600], teacher[2, 1:600] = torch.finfo(torch.float32).min, torch.finfo(torch.float32).min
    student[3] += 1e4
    teacher[3] -= 1e4
    student[4, ::2] += 40.0
    teacher[4, 1::3] -= 60.0
    student[5] = teacher[5]
    teacher[6] = -math.inf
    teacher[6, num_tokens // 2] = 3.0
    student[7, 512:1024] = -math.inf
    teacher[7, 512:1024] = -math.inf
    labels[0], labels[1], labels[7] = 3, num_tokens - 1, 0
    return student, teacher, labels, weight.clamp(min=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"hard_weight": 0.3, "temperature": 2.0}, CAPS])
def test_adversarial_rows(kind, options):
    rows = adversarial_rows(1536)
    if kind == "reverse_kl":
        rows[1][6] = rows[0][6]  # infinite, and without a gradient; `-inf` in the teacher alone is in test_dense.py
    expected, right = truth(*rows, kind, **options)
    found = torch.full_like(rows[0], 9.0)
    agrees(by_kernel(*rows, kind, found, **options), found, expected, right, UNITS[torch.float32])


@pytest.mark.parametrize("num_tokens", [1, 505, 511, 512, 513, 1017, 1019, 1023, 1024, 1025, 1536])
@pytest.mark.parametrize("shift", [0, 1, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tiles_end_anywhere(num_tokens, shift, dtype):
    """In place, in rows that start `shift` tokens after 16 bytes and are as far apart; the neighbours stay."""
    student, teacher, labels, weight = case(3, num_tokens, dtype)
    expected, right = truth(student, teacher, labels, weight, "jsd", **OPTIONS)
    wide = [torch.full((5, num_tokens + 9), math.inf, dtype=dtype) for _ in range(2)]
    views = [matrix[1:4, shift : shift + num_tokens] for matrix in wide]
    for view, tensor in zip(views, (student, teacher), strict=True):
        view.copy_(tensor)
    loss = by_kernel(*views, labels, weight, "jsd", views[0], **OPTIONS)
    agrees(loss, views[0], expected, right, UNITS[dtype])
    views[0].fill_(math.inf)
    assert wide[0].isinf().all(), "the kernel wrote outside its rows"
    assert torch.equal(views[1], teacher)


@pytest.mark.parametrize("dtypes", [("float32", "float32", "bfloat16"), ("bfloat16", "float32", "bfloat16")])
def test_dtypes_that_differ(dtypes):
    student, teacher, labels, weight = case(2, 1000)
    of_student, of_teacher, of_gradient = (getattr(torch, name) for name in dtypes)
    student, teacher = student.to(of_student), teacher.to(of_teacher)
    found = torch.empty(2, 1000, dtype=of_gradient)
    expected, right = truth(student, teacher, labels, weight, "skew_reverse_kl", **OPTIONS)
    loss = by_kernel(student, teacher, labels, weight, "skew_reverse_kl", found, **OPTIONS)
    agrees(loss, found, expected, right, UNITS[of_gradient])


@pytest.mark.parametrize(("num_tokens", "dtype"), [(32_000, torch.bfloat16), (50_257, torch.float16)])
def test_clusters_as_they_are_chosen(monkeypatch, num_tokens, dtype):
    monkeypatch.setattr("distill_kernels.triton_dense.cluster_for", cluster_for)
    student, teacher, labels, weight = case(2, num_tokens, dtype)
    expected, right = truth(student, teacher, labels, weight, "forward_kl", hard_weight=0.1)
    found = torch.empty_like(student)
    loss = by_kernel(student, teacher, labels, weight, "forward_kl", found, hard_weight=0.1)
    agrees(loss, found, expected, right, UNITS[dtype])


def test_streaming_can_be_asked_for(monkeypatch, launches):
    student, teacher, *_ = case(3, 700)
    results = []
    for name in ("triton", "streaming"):
        monkeypatch.setenv("DISTILL_KERNELS", name)
        gradient = torch.empty_like(student)
        workspace = Workspace(3, 700, torch.float32, student.device)
        settings = Settings(kind="reverse_kl")
        results.append((dense_rows(student, teacher, None, None, settings, workspace, gradient), gradient))
        assert launches == [3]
    for held, streamed in zip(*results, strict=True):
        torch.testing.assert_close(held, streamed, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("change", ["few rows", "tokens apart", "other starts"])
def test_what_still_streams(monkeypatch, launches, change):
    student, teacher, labels, weight = case(4, 600)
    by_kernel(student, teacher, labels, weight, "tvd", None)
    if change == "few rows":
        monkeypatch.setattr("distill_kernels.triton_dense._BUSY_CLUSTER_PROGRAMS", 2 * 4 + 1)
    if change == "tokens apart":
        student = student.T.contiguous().T
    if change == "other starts":
        student = torch.empty(4, 601)[:, 1:].copy_(student)
    expected, _ = truth(student, teacher, labels, weight, "tvd")
    loss = by_kernel(student, teacher, labels, weight, "tvd", None)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-6)
    assert launches == [4]


def test_the_interpreter_was_asked_for():
    assert os.environ["TRITON_INTERPRET"] == "1"
    by_kernel(*case(1, 9), "jsd", None)
