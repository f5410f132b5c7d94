"""`python parallel_cases.py FOLDER RANK SIZE [START]`: the cases, as one of SIZE processes; what failed, as JSON.

Each process builds the same whole tensors from a seed, gives the ops its part as DTensors, and compares loss and
gradients with float64 autograd of the definition on the whole logits, which it computes alone.
"""

import json
import os
import re
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from distill_kernels import LowRankHead, linear_divergence, linear_sparse_divergence
from distill_kernels.settings import KINDS
from oracle import dense_loss, logits_of, sparse_loss
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

N, H, H_T, V = 11, 8, 6, 23
TAILS = [("bucket", kind) for kind in KINDS] + [("told", kind) for kind in KINDS]
TAILS += [(tail, "forward_kl") for tail in ("zero", "renormalize", "uniform", "sampled")]
HARD = {"temperature": 2.0, "hard_weight": 0.25, "student_scale": 1.4, "student_softcap": 6.0, "chunk_bytes": 700}
TEACHER = {"teacher_scale": 0.7, "teacher_softcap": 5.0}
CASES = {}


def case(*parameters):
    def register(function):
        for values in parameters or [()]:
            name = "-".join([function.__name__, *map(str, values)])
            CASES[name] = lambda function=function, values=values: function(*values)
        return function

    return register


def cut(tensor, placement):
    return distribute_tensor(tensor.detach(), MESH, [placement]).requires_grad_(tensor.requires_grad)


def everywhere(tensor):
    return cut(tensor, Replicate())


def over_rows(tensor):
    return cut(tensor, Shard(0))


def randn(*shape, dtype=torch.float64, grad=False):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_(grad)


def student(rows=N, dtype=torch.float64, bias=True):
    tensors = [randn(rows, H, dtype=dtype, grad=True), randn(V, H, dtype=dtype, grad=True)]
    return [*tensors, randn(V, dtype=dtype, grad=True) if bias else None]


def rows_beside(num_rows, num_tokens):
    labels = torch.randint(0, num_tokens, (num_rows,))
    labels[1::3] = -100
    return {"labels": labels, "row_weight": torch.rand(num_rows)}


def close(found, right, rtol=1e-9, atol=1e-11):
    found = found.full_tensor() if isinstance(found, DTensor) else found
    torch.testing.assert_close(found, right, rtol=rtol, atol=atol, check_dtype=False)


def compare(loss, expected, leaves, exact):
    """Loss and three times the gradient; the result and its gradient by the hidden states are replicated."""
    assert loss.placements == (Replicate(),) and leaves[0].placements == (Replicate(),)
    close(loss, expected)
    upstream = torch.linspace(-1, 3, expected.numel(), dtype=expected.dtype).view(expected.shape)
    found = torch.autograd.grad(loss, leaves, everywhere(upstream.to(loss.dtype)))
    for gradient, leaf, right in zip(found, leaves, torch.autograd.grad(expected, exact, upstream), strict=True):
        assert gradient.placements == leaf.placements and gradient.shape == leaf.shape
        close(gradient, right)


@case(*[(kind, num, num != V) for kind in KINDS for num in (V, 21, 9, 40)], ("jsd", V, True))
def dense(kind, num_teacher, full):
    """Vocabularies of one size, of a padded teacher or student, and one that leaves a process without any token."""
    hidden, head, bias = student()
    teacher = randn(N, H_T), randn(num_teacher, H_T), randn(num_teacher)
    options = {**HARD, **TEACHER, **rows_beside(N, min(V, num_teacher)), "reduction": "none"} if full else {}
    leaves = [everywhere(hidden), over_rows(head), over_rows(bias)]
    placed = [everywhere(teacher[0]), over_rows(teacher[1])]
    biases = {"student_bias": leaves[2], "teacher_bias": over_rows(teacher[2])}
    loss = linear_divergence(*leaves[:2], *placed, kind, **biases, **options)
    logits, exact = logits_of(hidden, head, bias)
    expected = dense_loss(logits, teacher[0] @ teacher[1].T + teacher[2], kind, **without_plumbing(options))
    compare(loss, expected if full else expected.sum(), leaves, exact)


def without_plumbing(options):
    return {name: value for name, value in options.items() if name not in ("chunk_bytes", "reduction", "tail")}


@case(*[(*tail, True) for tail in TAILS], ("bucket", "jsd", False), ("uniform", "forward_kl", False))
def sparse(tail, kind, full):
    hidden, head, bias = student()
    logprobs = randn(N, V).mul(2).log_softmax(-1)
    ids = torch.stack([torch.randperm(V)[:5] for _ in range(N)])
    values = logprobs.gather(1, ids)
    ids[2, -1] = ids[3, 0] = -1
    ids[4, 1:] = -1
    if tail == "sampled":
        values = torch.rand(N, 5, dtype=torch.float64)
    if tail == "told":
        kept = torch.zeros(N, V + 1, dtype=torch.bool).scatter(1, ids % (V + 1), True)[:, :V]
        values = torch.cat([values, logprobs.masked_fill(kept, -torch.inf).logsumexp(1, keepdim=True)], 1)
    options = {**HARD, **rows_beside(N, V), "reduction": "none"} if full else {}
    leaves = [everywhere(hidden), over_rows(head), over_rows(bias)]
    tail = "bucket" if tail == "told" else tail
    rows = (everywhere(ids), everywhere(values)) if full else (ids, values)
    loss = linear_sparse_divergence(*leaves[:2], *rows, kind, tail=tail, student_bias=leaves[2], **options)
    logits, exact = logits_of(hidden, head, bias)
    expected = sparse_loss(logits, ids, values, kind, tail, **without_plumbing(options))
    compare(loss, expected if full else expected.sum(), leaves, exact)


@case()
def leading_dimensions_and_text_alone():
    hidden, head, _ = student(bias=False)
    hidden = hidden.detach()[:10].view(2, 5, H).requires_grad_()
    labels = torch.randint(0, V, (2, 5))
    labels[0, 2] = -100
    leaves = [everywhere(hidden), over_rows(head)]
    loss = linear_sparse_divergence(
        *leaves, everywhere(labels[..., None]), 1.0, tail="sampled", labels=everywhere(labels), reduction="none"
    )
    exact = [hidden.detach().requires_grad_(), head.detach().requires_grad_()]
    logprobs = (exact[0] @ exact[1].T).log_softmax(-1)
    expected = -logprobs.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels < 0, 0.0)
    compare(loss, expected, leaves, exact)


@case(("sum", 0), ("none", 0), ("sum", 5), ("none", 5))
def no_row_counts(reduction, rows):
    leaves = [place(tensor) for place, tensor in zip((everywhere, over_rows, over_rows), student(rows), strict=True)]
    labels = torch.full((rows,), -100)
    options = {"labels": labels, "hard_weight": 0.5, "student_bias": leaves[2], "reduction": reduction}
    teacher = everywhere(randn(rows, H_T)), over_rows(randn(V, H_T))
    for loss in (
        linear_divergence(*leaves[:2], *teacher, "jsd", **options),
        linear_sparse_divergence(*leaves[:2], labels[:, None], torch.zeros(rows, 1), **options),
    ):
        assert loss.requires_grad and (loss.to_local() == 0).all()
        for gradient, leaf in zip(torch.autograd.grad(loss.sum(), leaves), leaves, strict=True):
            assert gradient.shape == leaf.shape and (gradient.to_local() == 0).all()


@case(*[(kind,) for kind in KINDS])
def float32_is_as_accurate_as_one_process(kind):
    """Near teachers at an offset of 100, V = 5003: within 1e-6 (1 + loss) of float64, the bound of one process."""
    hidden, head, _ = (None if t is None else t.detach().float() for t in student(bias=False))
    head, bias = randn(5003, H, dtype=torch.float32), torch.full((5003,), 100.0)
    teacher = randn(N, H, dtype=torch.float32) * 0.2 + hidden, head * 0.9
    leaves = [everywhere(hidden.requires_grad_()), over_rows(head.requires_grad_())]
    placed = everywhere(teacher[0].detach()), over_rows(teacher[1].detach())
    loss = linear_divergence(*leaves, *placed, kind, student_bias=over_rows(bias), reduction="none")
    logits, exact = logits_of(hidden, head, bias)
    expected = dense_loss(logits, teacher[0].detach().double() @ teacher[1].detach().double().T, kind)
    off = (loss.to_local() - expected).abs()
    assert (off <= 1e-5 * (1 + expected)).all(), off.max()  # products of an offset of 100 have 1e-5 of rounding
    right = torch.autograd.grad(expected.sum(), exact)
    for gradient, exact_gradient in zip(torch.autograd.grad(loss.sum(), leaves), right, strict=True):
        far = (gradient.full_tensor() - exact_gradient).norm() / exact_gradient.norm()
        assert far <= 2e-5, far


@case(("jsd",), ("reverse_kl",))
def bfloat16_is_no_worse_than_eager(kind):
    hidden, head, _ = student(rows=64, dtype=torch.bfloat16, bias=False)
    teacher = randn(64, H_T, dtype=torch.bfloat16), randn(V, H_T, dtype=torch.bfloat16)
    leaves = [everywhere(hidden), over_rows(head)]
    loss = linear_divergence(*leaves, everywhere(teacher[0]), over_rows(teacher[1]), kind)
    logits, exact = logits_of(hidden, head, None)
    expected = dense_loss(logits, teacher[0].double() @ teacher[1].double().T, kind).sum()
    eager = dense_loss(hidden @ head.T, teacher[0] @ teacher[1].T, kind).sum()
    pairs = zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(eager, [hidden, head]), strict=True)
    assert abs(loss.to_local() - expected) <= 1.1 * abs(eager - expected) + 1e-3
    for (found, other), right in zip(pairs, torch.autograd.grad(expected, exact), strict=True):
        found = found.full_tensor()
        assert found.dtype == torch.bfloat16
        assert (found - right).norm() <= 1.5 * (other - right).norm()  # one more rounding: the sum over processes


@case(*[(kind,) for kind in KINDS])
def masked_tokens_and_poison(kind):
    """A token that both exclude lies in one process's part; a NaN row stays alone."""
    hidden, head, bias = (tensor.detach() for tensor in student())
    teacher = randn(N, H_T), randn(V, H_T), randn(V)
    bias[4] = teacher[2][4] = -torch.inf
    logits = hidden @ head.T + bias
    expected = dense_loss(logits, teacher[0] @ teacher[1].T + teacher[2], kind)
    hidden[3] = torch.nan
    biases = {"student_bias": over_rows(bias), "teacher_bias": over_rows(teacher[2])}
    tensors = everywhere(hidden), over_rows(head), everywhere(teacher[0]), over_rows(teacher[1])
    loss = linear_divergence(*tensors, kind, reduction="none", **biases).to_local()
    assert loss.isnan().nonzero().squeeze(-1).tolist() == [3]
    rest = torch.arange(N) != 3
    close(loss[rest], expected[rest])


class Sent(TorchDispatchMode):
    """Elements that go through collectives, and of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.elements, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [part for part in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(part)]
        if "c10d" in func.namespace:
            self.elements += max(part.numel() for part in tensors)
        else:
            self.largest = max([self.largest, *(part.untyped_storage().nbytes() // 8 for part in tensors)])
        return result


@case(("dense",), ("sparse",))
def a_few_numbers_per_row_are_sent(which):
    rows, tokens, width = 300, 1000, 4
    hidden, head = randn(rows, width, grad=True), randn(tokens, width, grad=True)
    leaves = [everywhere(hidden), over_rows(head)]
    teacher = everywhere(randn(rows, width)), over_rows(randn(tokens, width))
    labels, ids, values = torch.zeros(rows, dtype=torch.long), torch.arange(3).expand(rows, 3), randn(rows, 3)
    options = {"labels": labels, "hard_weight": 0.5, "temperature": 2.0, "chunk_bytes": 100 * 2 * (tokens // SIZE) * 8}
    with Sent() as sent:
        if which == "dense":
            loss = linear_divergence(*leaves, *teacher, "jsd", **options)
        else:
            loss = linear_sparse_divergence(*leaves, ids, -values.abs() - 3, "jsd", **options)
        loss.backward()
    # From every process: tops and partitions, also at the label's temperature, and sums. From one: the label's logit,
    # three ids' probabilities and logits. And the hidden states' gradient.
    numbers = 8 * SIZE + 1 if which == "dense" else 5 * SIZE + 1 + 2 * 3
    assert sent.elements == rows * (numbers + width), sent.elements / rows
    assert sent.largest <= (100 if which == "dense" else 200) * tokens // SIZE  # a chunk of rows, a part of V


@case(("forward_kl", True), ("jsd", False))
def gathered(kind, low_rank):
    """Each process has rows of its own: heads are gathered, gradients are those of the sum over processes."""
    _, head, bias = student(rows=1)
    teacher_head = randn(21, H_T)
    all_hidden, all_teacher = randn(SIZE, 5, H), randn(SIZE, 5, H_T)
    factors = (randn(2, H, grad=True), randn(V, 2, grad=True)) if low_rank else None
    head = head.detach().requires_grad_(not low_rank)
    leaves = [over_rows(head), over_rows(bias), *(over_rows(factor) for factor in factors or ())]
    mine = all_hidden[RANK].clone().requires_grad_()
    given = LowRankHead(weight=leaves[0], lora_A=leaves[2], lora_B=leaves[3], scale=0.5) if low_rank else leaves[0]
    loss = linear_divergence(mine, given, all_teacher[RANK], over_rows(teacher_head), kind, student_bias=leaves[1])
    assert not isinstance(loss, DTensor)
    whole = all_hidden.view(-1, H).requires_grad_()
    logits, exact = logits_of(whole, head, bias, factors)
    rows = dense_loss(logits, all_teacher.view(-1, H_T) @ teacher_head.T, kind)
    close(loss, rows.view(SIZE, 5)[RANK].sum())
    (3 * loss).backward()
    right = torch.autograd.grad(3 * rows.sum(), exact)
    close(mine.grad, right[0].view(SIZE, 5, H)[RANK])
    for leaf, gradient in zip([leaf for leaf in leaves if leaf.requires_grad], right[1:], strict=True):
        assert leaf.grad.placements == leaf.placements
        close(leaf.grad, gradient)


@case(("eager",), ("compiled",))
def gathered_from_fully_shard(how):
    """The head of a module that FSDP2 cut, read outside its forward: a sum, where FSDP2's own would be the mean."""
    from torch.distributed.fsdp import fully_shard

    whole, all_hidden = randn(V, H), randn(SIZE, 5, H)
    teacher = randn(SIZE, 5, H_T), randn(21, H_T)
    layer = torch.nn.Linear(H, V, bias=False).double()
    layer.weight.data.copy_(whole)
    fully_shard(layer, mesh=MESH)

    def function(hidden, head, teacher_hidden):
        return linear_divergence(hidden, head, teacher_hidden, teacher[1], "jsd")

    if how == "compiled":
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    function(all_hidden[RANK], layer.weight, teacher[0][RANK]).backward()
    exact = whole.requires_grad_()
    logits = all_hidden.view(-1, H) @ exact.T
    expected = dense_loss(logits, teacher[0].view(-1, H_T) @ teacher[1].T, "jsd").sum()
    assert layer.weight.grad.placements == (Shard(0),)
    close(layer.weight.grad, torch.autograd.grad(expected, exact)[0])


@case(("sum",), ("none",))
def cut_low_rank_head(reduction):
    hidden, head, bias = student()
    head = head.detach()
    factors = randn(2, H, grad=True), randn(V, 2, grad=True)
    teacher = randn(N, H_T), randn(21, H_T)
    leaves = [everywhere(hidden), over_rows(bias), everywhere(factors[0]), over_rows(factors[1])]
    given = LowRankHead(weight=over_rows(head), lora_A=leaves[2], lora_B=leaves[3], scale=0.5)
    options = {**HARD, **rows_beside(N, 21)}
    placed = everywhere(teacher[0]), over_rows(teacher[1])
    loss = linear_divergence(leaves[0], given, *placed, "jsd", student_bias=leaves[1], reduction=reduction, **options)
    logits, exact = logits_of(hidden, head, bias, factors)
    expected = dense_loss(logits, teacher[0] @ teacher[1].T, "jsd", **without_plumbing(options))
    compare(loss, expected if reduction == "none" else expected.sum(), leaves, exact)


@case(*[(kind, rows, num) for kind in KINDS for rows in (2, 6) for num in ((3001,) if rows == 2 else (40, 9))])
def by_kernels(kind, rows, num_teacher):
    """The row kernels (in the interpreter, where the environment asks for them): split rows, and one program each."""
    tokens = 3001 if rows == 2 else V
    hidden, head = randn(rows, H, dtype=torch.float32, grad=True), randn(tokens, H, dtype=torch.float32, grad=True)
    teacher = randn(rows, H_T, dtype=torch.float32), randn(num_teacher, H_T, dtype=torch.float32)
    options = {**HARD, **TEACHER, **rows_beside(rows, min(tokens, num_teacher)), "chunk_bytes": None}
    leaves = [everywhere(hidden), over_rows(head)]
    placed = everywhere(teacher[0]), over_rows(teacher[1])
    loss = linear_divergence(*leaves, *placed, kind, reduction="none", **options)
    logits, exact = logits_of(hidden, head, None)
    expected = dense_loss(logits, teacher[0].double() @ teacher[1].double().T, kind, **without_plumbing(options))
    assert ((loss.to_local() - expected).abs() <= 2e-6 * (4 + expected)).all()  # 4: the squared temperature
    # tensors of a CPU go to the kernels in the interpreter alone
    assert ("distill_kernels.triton_dense" in sys.modules) == (os.environ.get("TRITON_INTERPRET") == "1")
    right = torch.autograd.grad(expected.sum(), exact)
    for found, gradient in zip(torch.autograd.grad(loss.sum(), leaves), right, strict=True):
        close(found, gradient, rtol=1e-4, atol=2e-5)


@case()
def every_process_has_the_same_bits():
    hidden, head, _ = student(dtype=torch.float32, bias=False)
    leaves, teacher = [everywhere(hidden), over_rows(head)], (randn(N, H_T).float(), randn(V, H_T).float())
    loss = linear_divergence(*leaves, everywhere(teacher[0]), over_rows(teacher[1]), "jsd", reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), leaves[0])
    for tensor in (loss.to_local().detach(), gradient.to_local()):
        parts = [torch.empty_like(tensor) for _ in range(SIZE)]
        dist.all_gather(parts, tensor)
        assert all(torch.equal(part, tensor) for part in parts)


@case()
def refusals():
    hidden, head, _ = (None if t is None else t.detach() for t in student(bias=False))
    teacher_hidden, teacher_head = randn(N, H_T), randn(V, H_T)
    good = [everywhere(hidden), over_rows(head), everywhere(teacher_hidden), over_rows(teacher_head)]
    plane = init_device_mesh("cpu", (1, SIZE), mesh_dim_names=("a", "b"))
    two = distribute_tensor(head, plane, [Replicate(), Shard(0)])
    other = distribute_tensor(head, init_device_mesh("cpu", (SIZE,)), [Shard(1)])
    ids = torch.zeros(N, 2, dtype=torch.long)
    for words, call in [
        ("student_head: found a tensor beside", lambda: linear_divergence(good[0], head, *good[2:], "jsd")),
        ("student_head: .*Shard.dim=1", lambda: linear_divergence(good[0], other, *good[2:], "jsd")),
        ("student_head: .*2 dimensions", lambda: linear_divergence(hidden, two, teacher_hidden, good[3], "jsd")),
        ("teacher_hidden: found a tensor", lambda: linear_divergence(*good[:2], teacher_hidden, good[3], "jsd")),
        ("teacher_hidden: found a DTensor", lambda: linear_divergence(hidden, good[1], *good[2:], "jsd")),
        ("student_hidden: .*Shard", lambda: linear_divergence(over_rows(hidden), *good[1:], "jsd")),
        ("labels: found a DTensor", lambda: linear_divergence(
            hidden, good[1], teacher_hidden, good[3], "jsd", labels=everywhere(ids[:, 0]))),
        (r"student_head: found shape .*23, 8", lambda: linear_divergence(good[2], good[1], *good[2:], "jsd")),
        ("same id twice", lambda: linear_sparse_divergence(*good[:2], ids, torch.full((N, 2), -1.0))),
        ("labels: found 23", lambda: linear_divergence(*good, "jsd", labels=torch.full((N,), 23))),
    ]:  # fmt: skip
        try:
            call()
        except (ValueError, TypeError) as error:
            assert re.search(words, str(error), re.DOTALL) and len(str(error).splitlines()) <= 6, (words, error)
        else:
            raise AssertionError(f"not refused: {words}")


if __name__ == "__main__":
    folder, RANK, SIZE = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    meeting = {"init_method": f"file://{folder}/meeting", "rank": RANK, "world_size": SIZE}
    dist.init_process_group("gloo", timeout=timedelta(seconds=60), **meeting)
    MESH = init_device_mesh("cpu", (SIZE,))
    failed = {}
    CASES = {name: run for name, run in CASES.items() if name.startswith(sys.argv[4] if len(sys.argv) > 4 else "")}
    for name in CASES:
        torch.manual_seed(0)
        try:
            CASES[name]()
            failed[name] = ""
        except Exception:  # the processes no longer agree on what comes next
            failed[name] = traceback.format_exc()
            break
    (folder / f"{RANK}.json").write_text(json.dumps({name: failed.get(name, "did not run") for name in CASES}))
    os._exit(0)  # others may wait for this one: they see it go
