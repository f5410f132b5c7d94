"""Targets made of logits, position by position in float64."""

import numpy as np
import pytest
import torch

from distill.errors import StageFailed
from distill.targets import KINDS, Layout
from distill.targets.make import joined, make

# N positions, V vocabulary, K token ids kept, D hidden size

N, V, K, D = 9, 41, 6, 5
ALWAYS = (0, 40)


@pytest.fixture
def logits_NV():
    torch.manual_seed(0)
    return 4 * torch.randn(N, V)


@pytest.fixture
def next_N():
    return torch.tensor([0, 40, 3, 3, 20, 21, 22, 39, 1])


def logprobs_of(logits_NV):
    logits_NV = logits_NV.double().numpy()
    return logits_NV - np.log(np.exp(logits_NV).sum(axis=1, keepdims=True))


def test_top_k_keeps_the_likeliest_and_what_it_must(logits_NV, next_N):
    targets = make(Layout("top_k", V, K), logits_NV, next_N, always_keep=ALWAYS)
    logprobs_NV = logprobs_of(logits_NV)
    for n in range(N):
        must = {*ALWAYS, int(next_N[n])}
        others = [i for i in np.argsort(-logprobs_NV[n]).tolist() if i not in must]
        expected = sorted([*must, *others[: K - len(must)]], key=lambda i: -logprobs_NV[n, i])
        assert targets.token_ids_SK[n].tolist() == expected
        np.testing.assert_allclose(targets.logprobs_SK[n], logprobs_NV[n, expected], rtol=1e-5, atol=1e-6)
        rest = [i for i in range(V) if i not in expected]
        np.testing.assert_allclose(targets.tail_S[n], np.log(np.exp(logprobs_NV[n, rest]).sum()), rtol=1e-5)
        np.testing.assert_allclose(targets.next_S[n], logprobs_NV[n, next_N[n]], rtol=1e-5, atol=1e-6)
    normaliser_N = np.log(np.exp(logits_NV.double().numpy()).sum(axis=1))
    np.testing.assert_allclose(targets.log_normaliser_S, normaliser_N, rtol=1e-5)


def test_all_tokens_kept_leave_no_tail(logits_NV, next_N):
    targets = make(Layout("top_k", V, V), logits_NV, next_N)
    assert (targets.tail_S == -np.inf).all()
    read = type(targets).from_bytes(memoryview(targets.to_bytes(Layout("top_k", V, V))), N, Layout("top_k", V, V))
    np.testing.assert_allclose(np.exp(read.logprobs_SK).sum(axis=1), 1, rtol=1e-5)


def test_the_tail_of_a_sure_teacher_has_its_digits():
    logits_NV = torch.zeros(1, 1000)
    logits_NV[0, 7] = 60.0
    targets = make(Layout("top_k", 1000, 2), logits_NV, torch.tensor([7]))
    np.testing.assert_allclose(targets.tail_S, np.log(998) - 60, rtol=1e-6)


def test_sampled_carries_the_teachers_entropy(logits_NV, next_N):
    logits_NV[0, :5] = -torch.inf
    targets = make(Layout("sampled", V, 50), logits_NV, next_N, uniform_N=torch.full((N,), 0.3, dtype=torch.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        p_NV = np.exp(logprobs_of(logits_NV))
        terms_NV = np.where(p_NV > 0, -p_NV * np.log(p_NV), 0)
    np.testing.assert_allclose(targets.entropy_S, terms_NV.sum(axis=1), rtol=1e-5, atol=1e-6)
    start = 0
    for n, end in enumerate(targets.ends_S):
        counts_V = np.zeros(V)
        counts_V[targets.token_ids_E[start:end]] = targets.counts_E[start:end]
        assert counts_V.sum() == 50 and (np.abs(counts_V - 50 * p_NV[n]) < 1 + 1e-4).all()
        start = end


def test_dense_and_next(logits_NV, next_N):
    logprobs_NV = logprobs_of(logits_NV)
    dense = make(Layout("dense", V), logits_NV, next_N)
    np.testing.assert_allclose(dense.logprobs_SV, logprobs_NV, rtol=1e-5, atol=1e-5)
    following = make(Layout("next", V), logits_NV, next_N)
    np.testing.assert_allclose(following.logprobs_S, logprobs_NV[np.arange(N), next_N], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head_rows", [V - 4, V, V + 4])
def test_frozen_head_vectors_give_the_dense_divergence(logits_NV, next_N, head_rows):
    head_VD, hidden_D = torch.randn(head_rows, D), np.random.default_rng(0).standard_normal(D)
    targets = make(Layout("frozen_head", V, D), logits_NV, next_N, head_VD=head_VD)
    shared = min(V, head_rows)
    logprobs_NV = logprobs_of(logits_NV[:, :shared])
    student_V = head_VD.double().numpy()[:shared] @ hidden_D
    log_sum = np.log(np.exp(student_V).sum())
    kl_N = (np.exp(logprobs_NV) * (logprobs_NV - (student_V - log_sum))).sum(axis=1)
    np.testing.assert_allclose(log_sum - targets.vectors_SD @ hidden_D - targets.entropy_S, kl_N, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_made_apart_and_joined_are_one(kind, logits_NV, next_N):
    layout = Layout(kind, V, {"sampled": 12, "top_k": K, "frozen_head": D}.get(kind, 0))
    uniform_N, head_VD = torch.rand(N, dtype=torch.float64), torch.randn(V, D)

    def made(start, stop):
        at = slice(start, stop)
        return make(layout, logits_NV[at], next_N[at], uniform_N=uniform_N[at], head_VD=head_VD)

    whole = made(0, N)
    for one in (joined([made(0, 4), made(4, 5), made(5, N)]), joined([made(0, N)])):
        for name, value in vars(whole).items():  # a product of matrices rounds as its size has it
            np.testing.assert_allclose(getattr(one, name), value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_last_part_may_be_empty(logits_NV, next_N):
    targets = make(Layout("sampled", V, 12), logits_NV, next_N, uniform_N=torch.rand(N, dtype=torch.float64))
    assert len(joined([targets, targets.part(2, 2)])) == N


def test_any_part_may_be_empty(logits_NV, next_N):
    targets = make(Layout("sampled", V, 12), logits_NV, next_N, uniform_N=torch.rand(N, dtype=torch.float64))
    assert len(joined([targets.part(0, 0), targets])) == N


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(logits_NV, next_N, broken):
    logits_NV[3, 5] = broken
    with pytest.raises(StageFailed, match=r"not finite.*teacher\.dtype"):
        make(Layout("sampled", V, 12), logits_NV, next_N, uniform_N=torch.rand(N, dtype=torch.float64))
