"""Between forward and backward: what backward reads again must be what forward read, and nobody else holds it."""

import gc

import pytest
import torch
from distill_kernels import LowRankHead, divergence, linear_divergence, linear_sparse_divergence
from torch.multiprocessing.reductions import StorageWeakRef

N, V = 6, 17


def tensors():
    made = {
        "student": torch.randn(N, V, requires_grad=True),
        "teacher": torch.randn(N, V),
        "hidden": torch.randn(N, 4, requires_grad=True),
        "head": torch.randn(V, 4),
        "bias": torch.randn(V),
        "lora_A": torch.randn(2, 4),
        "lora_B": torch.randn(V, 2),
        "teacher_hidden": torch.randn(N, 5),
        "teacher_head": torch.randn(V, 5),
        "teacher_bias": torch.randn(V),
        "token_ids": torch.arange(N * 3).view(N, 3) % V,
        "values": torch.full((N, 3), -2.0),
        "labels": torch.arange(N),
        "row_weight": torch.rand(N),
    }
    made["labels"][2] = -100
    return made


def loss_of(op, t, reduction):
    options = {"labels": t["labels"], "row_weight": t["row_weight"], "hard_weight": 0.3, "reduction": reduction}
    if op == "logits":
        return divergence(t["student"], t["teacher"], "jsd", **options)
    head = LowRankHead(weight=t["head"], lora_A=t["lora_A"], lora_B=t["lora_B"], scale=0.5)
    options["student_bias"] = t["bias"]
    if op == "dense":
        teacher = (t["teacher_hidden"], t["teacher_head"])
        return linear_divergence(t["hidden"], head, *teacher, "jsd", teacher_bias=t["teacher_bias"], **options)
    return linear_sparse_divergence(t["hidden"], head, t["token_ids"], t["values"], "jsd", **options)


STUDENT = ("hidden", "head", "bias", "lora_A", "lora_B", "labels", "row_weight")
READ = {
    "logits": ("student", "teacher", "labels", "row_weight"),
    "dense": (*STUDENT, "teacher_hidden", "teacher_head", "teacher_bias"),
    "sparse": (*STUDENT, "token_ids", "values"),
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, names in READ.items() for name in names])
def test_what_was_changed_in_place_is_refused(op, name):
    t = tensors()
    loss_N, total = loss_of(op, t, "none"), loss_of(op, t, "sum")
    with torch.no_grad():
        t[name].add_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_N.sum().backward()
    total.backward(retain_graph=True)  # its gradients were taken in forward
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("op", READ)
def test_backward_lets_go_of_the_inputs(op, reduction):
    t = tensors()
    loss = loss_of(op, t, reduction)
    inputs = [StorageWeakRef(t[name].untyped_storage()) for name in READ[op] if not t[name].requires_grad]
    loss.sum().backward()
    del t
    gc.collect()
    assert loss.grad_fn is not None
    assert [storage.expired() for storage in inputs] == [True] * len(inputs)


def test_a_teacher_of_inference_mode():
    """Its tensors cannot be saved for backward; its distribution is a constant all the same."""
    t = tensors()
    with torch.inference_mode():
        teacher = t["teacher"] * 1
    found = torch.autograd.grad(divergence(t["student"], teacher, "jsd", reduction="none").sum(), t["student"])
    right = torch.autograd.grad(divergence(t["student"], t["teacher"], "jsd"), t["student"])
    assert torch.equal(found[0], right[0])
