"""Which rows are in memory at a time: all of them once, within the budget, the head's gradient added up seldom."""

from dataclasses import asdict

import pytest
import torch
from distill_kernels import linear_divergence
from distill_kernels import projection as projections
from distill_kernels.calls import linear_call
from distill_kernels.chunks import Chunks, choose_chunks
from distill_kernels.projection import Projection
from distill_kernels.settings import Settings
from distill_kernels.softened import Workspace, logits_memory
from distill_kernels.student import Student
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

GIB = 2**30


def projection(device, dtype, num_tokens, hidden_size) -> Projection:
    with FakeTensorMode():
        head = torch.empty(num_tokens, hidden_size, dtype=dtype, device=device)
        hidden = torch.empty(1, hidden_size, dtype=dtype, device=device)
    return Projection(hidden_NH=hidden, head_VH=head, bias_V=None, product_dtype=dtype)


def chosen(rows, tokens, size, *, device="cuda", dtype=torch.bfloat16, head=True, dense=True, gradient=True, **options):
    student = projection(device, dtype, tokens, size)
    teacher = projection(device, dtype, tokens, size) if dense else None
    options = {"chunk_bytes": None, "head_dtype": dtype if head else None, "wants_gradient": gradient, **options}
    return choose_chunks(rows, tokens, student, teacher, **options)


def sizes(chunks: Chunks) -> tuple[int, int]:
    return chunks.chunk_rows, chunks.group_rows


def test_on_a_gpu_all_gradients_are_kept_where_they_take_no_more_than_their_sum():
    # 2 GiB hold two float32 logits and a gradient of 1674 rows, evened out over 5 chunks; 2 · 8192 rows <= 4 · 4096
    assert sizes(chosen(8192, 128_256, 4096)) == (1664, 8192)
    # float16 may overflow before backward divides by the number of rows
    assert sizes(chosen(8192, 128_256, 4096, dtype=torch.float16)) == (1024, 4096)
    # one row more than that: 1 GiB of gradients holds 4185 rows, 1 GiB of logits 1046; two groups would not do for 8193
    assert sizes(chosen(8193, 128_256, 4096)) == (1024, 2816)
    # a smaller model sums up after 4096 rows, not after the 1664 of a chunk beside its own gradient
    assert sizes(chosen(8192, 128_256, 2048)) == (1024, 4096)
    # a sparse teacher leaves room for twice the logits
    assert sizes(chosen(8192, 128_256, 2048, dense=False)) == (2048, 4096)
    # 32,000 tokens: the gradient of all rows is half a GiB
    assert sizes(chosen(8192, 32_000, 2048)) == (4096, 8192)


def test_what_adds_nothing_up_has_no_groups():
    for options in ({"head": False}, {"head": False, "gradient": False}, {"dtype": torch.float32}):
        chunks = chosen(8192, 128_256, 4096, **options)
        assert chunks.chunk_rows == chunks.group_rows, options
    # 10 bytes a token, student, teacher and gradient: 1674 rows at most, 5 chunks, evened out
    assert sizes(chosen(8192, 128_256, 4096, head=False)) == (1664, 1664)


def test_on_a_cpu_memory_decides():
    # 32 MiB hold two 16-bit logits of 262 rows: four chunks; 1024 rows <= 2 · 512
    assert sizes(chosen(1024, 32_000, 512, device="cpu")) == (256, 1024)
    assert sizes(chosen(1025, 32_000, 512, device="cpu")) == (257, 1025 // 4 + 1)
    # master weights of float32 have a gradient of float32 in the end
    assert sizes(chosen(1024, 32_000, 512, device="cpu", head_dtype=torch.float32)) == (256, 256)
    assert sizes(chosen(5000, 8, 64, device="cpu")) == (1000, 1000)


@given(
    rows=st.integers(0, 5000),
    tokens=st.integers(1, 3000),
    size=st.integers(1, 600),
    budget=st.none() | st.integers(1, 2**24),
    device=st.sampled_from(["cpu", "cuda"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    head=st.booleans(),
    dense=st.booleans(),
)
def test_every_row_once_and_never_more_bytes_than_promised(rows, tokens, size, budget, device, dtype, head, dense):
    chunks = chosen(rows, tokens, size, device=device, dtype=dtype, head=head, dense=dense, chunk_bytes=budget)
    groups = list(chunks.groups())
    found = [row for group in groups for chunk in chunks.chunks_of(group) for row in range(chunk.start, chunk.stop)]
    assert found == list(range(rows)) and chunks.num_groups == len(groups)
    if not rows:
        return
    first = [chunk.stop - chunk.start for chunk in chunks.chunks_of(groups[0])]
    longest = max(chunk.stop - chunk.start for group in groups for chunk in chunks.chunks_of(group))
    # memory is made for the first
    assert first[0] == longest and groups[0].stop == max(group.stop - group.start for group in groups)
    rounds = device == "cuda" and dtype == torch.bfloat16
    logits = longest * tokens * (1 + dense) * (4 if rounds else dtype.itemsize)
    kept = groups[0].stop * tokens * dtype.itemsize if rounds or len(first) > 1 else 0
    budget = budget or (32 * 2**20 if device == "cpu" else 2 * GIB)
    if longest > 1:  # one row is the least
        assert logits <= budget
        assert logits + kept <= budget or kept <= 4 * tokens * size


@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
def test_the_gradient_of_a_16_bit_head_does_not_depend_on_the_chunks(kind):
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(n, 64, generator=generator).bfloat16() for n in (100, 300)]
    teacher = [torch.randn(n, 48, generator=generator).bfloat16() for n in (100, 300)]
    found = []
    for chunk_bytes in (None, 7 * 300 * 4):
        leaves = [tensor.clone().requires_grad_() for tensor in student]
        loss = linear_divergence(*leaves, *teacher, kind, chunk_bytes=chunk_bytes)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_the_gradient_of_a_float16_head_may_exceed_float16_before_it_is_divided():
    rows, size, tokens = 1200, 600, 300  # two chunks' sums, of which neither overflows
    hidden = torch.zeros(rows, size, dtype=torch.float16)
    hidden[:, 0] = 60
    student = [hidden.requires_grad_(), torch.zeros(tokens, size, dtype=torch.float16, requires_grad=True)]
    teacher_head = torch.zeros(tokens, size, dtype=torch.float16)
    teacher_head[5, 0] = 10  # sure of one token everywhere
    loss = linear_divergence(*student, hidden.detach(), teacher_head, "forward_kl", chunk_bytes=600 * tokens * 4) / rows
    loss.backward()
    # by hand: the student spreads evenly, so the token's logit has the derivative 1 / V - 1 in every row
    assert student[1].grad[5, 0].item() == pytest.approx(60 * (1 / tokens - 1), rel=2e-3)


def test_a_16_bit_head_is_added_up_in_float32_from_two_groups_on():
    """Logits of all 12 rows or of half of them fit; a sum in 16 bits would round each half."""
    options = asdict(Settings(kind="forward_kl"))
    hidden, head = torch.randn(12, 4).bfloat16(), torch.randn(50, 4).bfloat16()
    student = Student(hidden=hidden, head=head, bias=torch.zeros(50).bfloat16())
    dtypes = []
    for rows in (12, 6):
        call = linear_call(student, (hidden, head, None), None, None, -100, "sum", None, rows * 50 * 4, options)
        _, gradients = call.evaluate(student.flat_tensors, [True] * 3 + [False] * 2, None)
        dtypes.append([None if gradient is None else gradient.dtype for gradient in gradients])
    narrow, wide = torch.bfloat16, torch.float32
    assert dtypes == [[narrow, narrow, wide, None, None], [narrow, wide, wide, None, None]]


def test_rows_of_a_gpu_begin_at_multiples_of_128_bytes():
    memory = logits_memory(3, 50_257, torch.bfloat16, torch.device("meta"))
    assert memory.shape == (3, 50_257)
    assert memory.stride(0) == 50_304  # 786 · 64: 786 times 128 bytes


def test_the_buffers_are_gone_before_the_heads_gradient_is_made(monkeypatch):
    """One group: chunk and blocks make room for the product of all rows."""
    kept, at_the_end = [], []
    take, write = Workspace.take, projections.write_product

    def taking(self, name, num_rows):
        buffer = take(self, name, num_rows)
        kept.append(StorageWeakRef(buffer.untyped_storage()))
        return buffer

    def writing(into, a, b):
        at_the_end.append([storage.expired() for storage in kept])
        write(into, a, b)

    monkeypatch.setattr(Workspace, "take", taking)
    monkeypatch.setattr(projections, "write_product", writing)
    hidden, head = torch.randn(12, 8).bfloat16().requires_grad_(), torch.randn(50, 8).bfloat16().requires_grad_()
    linear_divergence(hidden, head, hidden.detach(), torch.randn(50, 8).bfloat16(), "jsd", chunk_bytes=4 * 50 * 4)
    assert len(kept) >= 12  # four buffers of three chunks
    assert at_the_end == [[True] * len(kept)] * 2  # by hidden states and by the head
