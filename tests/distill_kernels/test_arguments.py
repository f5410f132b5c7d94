"""Bad input is refused with the argument's name, what was found and what is needed."""

import math

import pytest
import torch
from distill_kernels import divergence, linear_divergence, linear_sparse_divergence

HIDDEN, HEAD = torch.zeros(4, 3), torch.zeros(10, 3)
LOGITS, IDS, VALUES = torch.zeros(4, 10), torch.tensor([[1, 2]] * 4), torch.full((4, 2), -1.0)
LABELS = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kind": "kl"}, ValueError, ["kind", "'kl'", "forward_kl"]),
        ({"beta": 1.0}, ValueError, ["beta", "1.0", "reverse_kl"]),
        ({"kind": "skew_reverse_kl", "alpha": 0.0}, ValueError, ["alpha", "0.0"]),
        ({"temperature": 0.0}, ValueError, ["temperature", "0.0", "above 0"]),
        ({"temperature": "1"}, TypeError, ["temperature", "str"]),
        ({"temperature": math.nan}, ValueError, ["temperature", "nan"]),
        ({"student_softcap": -1.0}, ValueError, ["student_softcap", "-1.0"]),
        ({"teacher_scale": math.inf}, ValueError, ["teacher_scale", "inf"]),
        ({"hard_weight": 1.5, "labels": LABELS}, ValueError, ["hard_weight", "1.5"]),
        ({"hard_weight": 0.5}, ValueError, ["labels", "None", "hard_weight=0.5"]),
        ({"labels": LABELS + 10}, ValueError, ["labels", "10", "0 to 9", "ignore_index=-100"]),
        ({"labels": LABELS - 3}, ValueError, ["labels", "-3"]),
        ({"labels": LABELS[:3]}, ValueError, ["labels.shape", "[3]", "[4]"]),
        ({"labels": LABELS.float()}, TypeError, ["labels", "float32", "int64"]),
        ({"row_weight": torch.ones(3)}, ValueError, ["row_weight.shape", "[3]", "[4]"]),
        ({"row_weight": LABELS}, TypeError, ["row_weight", "int64"]),
        ({"reduction": "mean"}, ValueError, ["reduction", "'mean'", "sum, none"]),
    ],
)
def test_options(options, error, words):
    options = {"kind": "jsd", **options}
    kind = options.pop("kind")
    for call in (
        lambda: divergence(LOGITS, LOGITS, kind, **options),
        lambda: linear_divergence(HIDDEN, HEAD, HIDDEN, HEAD, kind, **options),
        lambda: linear_sparse_divergence(HIDDEN, HEAD, IDS, VALUES, kind, **options),
    ):
        with pytest.raises(error) as caught:
            call()
        if "teacher_scale" not in options:
            assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((HIDDEN.int(), HEAD, HIDDEN, HEAD), TypeError, ["student_hidden", "int32"]),
        ((HIDDEN, HEAD[:, :2], HIDDEN, HEAD), ValueError, ["student_head", "[10, 2]", "[vocabulary, 3]"]),
        ((HIDDEN, HEAD, HIDDEN[:3], HEAD), ValueError, ["teacher_hidden.shape[:-1]", "[3]", "[4]"]),
        ((HIDDEN, HEAD.bfloat16(), HIDDEN, HEAD), TypeError, ["student_head", "bfloat16", "autocast"]),
        ((HIDDEN, HEAD, HIDDEN, HEAD.to("meta")), ValueError, ["teacher_head.device", "meta", "cpu"]),
        ((HIDDEN, None, HIDDEN, HEAD), TypeError, ["student_head", "NoneType"]),
    ],
)
def test_projections(arguments, error, words):
    with pytest.raises(error) as caught:
        linear_divergence(*arguments, "jsd")
    assert all(word in str(caught.value) for word in words), caught.value


def test_logits_and_chunks():
    for options, word in (({"chunk_bytes": 0}, "chunk_bytes"), ({"logits_dtype": torch.float64}, "logits_dtype")):
        with pytest.raises(ValueError, match=word):
            linear_divergence(HIDDEN, HEAD, HIDDEN, HEAD, "jsd", **options)
    with pytest.raises(ValueError, match="student_bias"):
        linear_divergence(HIDDEN, HEAD, HIDDEN, HEAD, "jsd", student_bias=torch.zeros(9))
    with pytest.raises(ValueError, match="vocabulary of 0 tokens"):
        divergence(torch.zeros(2, 0), torch.zeros(2, 3), "jsd")
    with pytest.raises(ValueError, match="teacher_logits"):
        divergence(LOGITS, LOGITS[:2], "jsd")


@pytest.mark.parametrize(
    ("ids", "values", "options", "words"),
    [
        (IDS + 9, VALUES, {}, ["token_ids", "11", "0 to 9", "-1"]),
        (IDS - 4, VALUES, {}, ["token_ids", "-3"]),
        (IDS - 3, VALUES, {}, ["token_ids: found -2"]),
        (IDS[:, :0], VALUES[:, :0], {}, ["token_ids", "[4, 0]"]),
        (IDS[0], VALUES, {}, ["token_ids", "[2]"]),
        (IDS, VALUES[:, :1], {}, ["values.shape", "[4, 1]", "[4, 2]"]),
        (IDS, torch.cat([VALUES, VALUES], 1), {}, ["values.shape", "[4, 4]", "[4, 2]"]),
        (IDS, torch.cat([VALUES, VALUES[:, :1]], 1), {"tail": "zero"}, ["values.shape", "[4, 3]", "[4, 2]"]),
        (IDS, torch.cat([VALUES, VALUES[:, :1] * 0], 1), {}, ["values", "add up to 1.7"]),
        (IDS, -VALUES, {}, ["values", "1.0", "log-probabilities", "sampled"]),
        (IDS, VALUES * 0, {}, ["values", "add up to 2"]),
        (IDS, VALUES, {"tail": "sampled"}, ["values", "-1.0", "at least 0"]),
        (IDS, VALUES, {"tail": "top"}, ["tail", "'top'", "bucket"]),
        (IDS, -VALUES, {"tail": "sampled", "kind": "jsd"}, ["tail", "jsd", "unbiased", "bucket"]),
        (IDS, VALUES, {"tail": "uniform", "kind": "reverse_kl"}, ["tail", "reverse_kl", "forward_kl"]),
        (IDS * 0 - 1, VALUES, {"tail": "renormalize"}, ["values", "without any mass"]),
        (IDS * 0, VALUES, {}, ["token_ids", "twice", "sampled"]),
        (IDS * 0, VALUES, {"tail": "zero"}, ["token_ids", "twice", "sampled"]),
        (IDS * 0, VALUES, {"tail": "renormalize"}, ["token_ids", "twice", "sampled"]),
        (IDS * 0, VALUES, {"tail": "uniform"}, ["token_ids", "twice", "sampled"]),
        (IDS, VALUES, {"teacher_softcap": 3.0}, ["teacher_softcap", "3.0"]),
    ],
)
def test_sparse(ids, values, options, words):
    with pytest.raises(ValueError) as caught:
        linear_sparse_divergence(HIDDEN, HEAD, ids, values, **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_ids_of_sequences():
    hidden, ids, values = HIDDEN.view(2, 2, -1), IDS.view(2, 2, -1), VALUES.view(2, 2, -1)
    found = linear_sparse_divergence(hidden, HEAD, ids, values, reduction="none")
    assert torch.equal(found.flatten(), linear_sparse_divergence(HIDDEN, HEAD, IDS, VALUES, reduction="none"))
    with pytest.raises(ValueError, match=r"token_ids: found shape \[2, 2, 0\]; needed \[2, 2, 'K'\]"):
        linear_sparse_divergence(hidden, HEAD, ids[..., :0], values[..., :0])


def test_rows_that_do_not_count_may_hold_anything():
    labels = torch.tensor([0, -100, 0, 0])
    ids, values = IDS.clone(), VALUES.clone()
    ids[1], values[1] = 99, 5.0
    loss = linear_sparse_divergence(HIDDEN, HEAD, ids, values, labels=labels)
    assert loss.isfinite()
