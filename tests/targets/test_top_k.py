"""Top-k targets: ids and the next token's log-probability exact, the others within the stated bound."""

import distill_kernels
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distill.targets import Layout, Places
from distill.targets.make import make
from distill.targets.top_k import LEAST, TopKTargets, logprob_bound, round_up_to_float16, top_k_bytes

# S positions, K token ids kept, V vocabulary


def targets_of(vocab_size, kept, num_positions, scale, seed) -> TopKTargets:
    """Teachers from flat to sure; the ids in no order, as always-kept ids stand among them."""
    random = np.random.default_rng(seed)
    logits_SK = scale * random.standard_normal((num_positions, kept))
    rest_S1 = logits_SK.max(axis=1, keepdims=True) + scale * random.normal(-1, 1, (num_positions, 1))
    if kept == vocab_size:
        rest_S1 = np.full_like(rest_S1, -np.inf)
    all_SK = np.concatenate([logits_SK, np.minimum(rest_S1, logits_SK.max(axis=1, keepdims=True) + 5)], axis=1)
    logprobs_SK = all_SK - np.logaddexp.reduce(all_SK, axis=1, keepdims=True)
    ids = [random.choice(vocab_size, size=kept, replace=False, shuffle=True) for _ in range(num_positions)]
    return TopKTargets(
        np.array(ids, dtype=np.int32).reshape(num_positions, kept),
        logprobs_SK[:, :-1].astype(np.float32),
        logprobs_SK[:, -1].astype(np.float32),
        logprobs_SK[:, 0].astype(np.float32),
        random.normal(0, 30, num_positions).astype(np.float32),
    )


@st.composite
def stored(draw):
    vocab_size = draw(st.one_of(st.integers(2, 100), st.integers(2, 2**20)))
    kept, num_positions = draw(st.integers(1, min(64, vocab_size))), draw(st.integers(0, 5))
    scale, seed = draw(st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0, 40.0])), draw(st.integers(0, 2**32))
    return Layout("top_k", vocab_size, kept), targets_of(vocab_size, kept, num_positions, scale, seed)


def written_and_read(targets, layout) -> TopKTargets:
    data = targets.to_bytes(layout)
    assert len(data) == top_k_bytes(len(targets), layout)
    return TopKTargets.from_bytes(memoryview(b"?" + data)[1:], len(targets), layout)


def assert_within_bounds(read, targets):
    assert (read.token_ids_SK == targets.token_ids_SK).all()
    assert (read.next_S == targets.next_S).all()
    with np.errstate(invalid="ignore"):  # a tail of no mass: -inf on both sides
        off_S = np.abs(read.tail_S - targets.tail_S)
    assert ((off_S <= 2**-11 * np.abs(targets.tail_S) + 2**-25) | (read.tail_S == targets.tail_S)).all()
    normaliser_S = targets.log_normaliser_S
    assert (np.abs(read.log_normaliser_S - normaliser_S) <= 2**-11 * np.abs(normaliser_S) + 2**-25).all()
    for s in range(len(targets)):
        below_K = targets.logprobs_SK[s] - targets.logprobs_SK[s].max()
        told_apart_K = below_K >= LEAST
        bound = logprob_bound(-max(below_K.min(), LEAST))
        assert np.abs(read.logprobs_SK[s] - targets.logprobs_SK[s])[told_apart_K].max() <= bound
        assert (read.logprobs_SK[s][~told_apart_K] - read.logprobs_SK[s].max() <= LEAST * 0.99).all()
        assert abs(np.exp(read.logprobs_SK[s].astype(np.float64)).sum() + np.exp(read.tail_S[s]) - 1) < 1e-5


@settings(deadline=None)
@given(stored(), st.data())
@example((Layout("top_k", 2, 2), targets_of(2, 2, 3, 1.0, 0)), None)
@example((Layout("top_k", 2**20, 64), targets_of(2**20, 64, 2, 40.0, 0)), None)
def test_what_is_read_is_within_the_bound(case, data):
    layout, targets = case
    assert_within_bounds(written_and_read(targets, layout), targets)
    start = data.draw(st.integers(0, len(targets))) if data else 1
    stop = data.draw(st.integers(start, len(targets))) if data else 2
    part = targets.part(start, stop)
    assert len(part) == stop - start and (part.token_ids_SK == targets.token_ids_SK[start:stop]).all()
    assert (part.logprobs_SK == targets.logprobs_SK[start:stop]).all()
    assert_within_bounds(written_and_read(part, layout), part)


def test_the_likeliest_are_kept_most_exactly():
    # sqrt(b * range) / 255 is half a step of b nats below the highest
    targets = targets_of(5000, 64, 200, 2.0, 1)
    read = written_and_read(targets, Layout("top_k", 5000, 64))
    below_SK = (targets.logprobs_SK.max(axis=1, keepdims=True) - targets.logprobs_SK).astype(np.float64)
    half_step_SK = np.sqrt(below_SK * below_SK.max(axis=1, keepdims=True)) / 255 + below_SK.max() / 255**2
    assert (np.abs(read.logprobs_SK - targets.logprobs_SK) <= half_step_SK * 1.01 + 0.01).all()


def test_impossible_tokens_are_kept_as_far_below():
    with np.errstate(divide="ignore"):
        logprobs_SK = np.log(np.array([[0.75, 0.25, 0.0]], dtype=np.float32))
    targets = TopKTargets(np.array([[7, 3, 5]]), logprobs_SK, np.array([-np.inf]), np.zeros(1), np.zeros(1))
    read = written_and_read(targets, Layout("top_k", 9, 3))
    assert read.logprobs_SK[0, 2] <= -64 and read.tail_S[0] == -np.inf
    assert (np.abs(read.logprobs_SK[0, :2] - logprobs_SK[0, :2]) <= logprob_bound(-LEAST)).all()


def test_a_flat_teacher_over_a_large_vocabulary_is_within_the_bound():
    vocab_size, kept = 745_000, 1
    each = np.log(1 / vocab_size)
    tail_S = np.array([np.log1p(-kept / vocab_size)], dtype=np.float32)
    targets = TopKTargets(np.array([[5]]), np.array([[each]], dtype=np.float32), tail_S, tail_S, tail_S)
    read = written_and_read(targets, Layout("top_k", vocab_size, kept))
    assert abs(read.logprobs_SK[0, 0] - each) <= logprob_bound(0.0)


@settings(deadline=None)
@given(st.floats(0, 60_000, width=32))
def test_rounding_up_to_float16(value):
    rounded = round_up_to_float16(np.array([value], dtype=np.float32))[0]
    assert float(rounded) >= value
    assert value == 0 or float(np.nextafter(rounded, np.float16(0))) < value


@pytest.mark.parametrize(("kept", "size_bytes"), [(32, 114), (64, 218)])
def test_bytes_of_a_large_vocabulary(kept, size_bytes):
    layout = Layout("top_k", 151_936, kept)
    assert len(targets_of(151_936, kept, 10, 3.0, 0).to_bytes(layout)) == 10 * size_bytes


def test_a_batch_tells_the_tail_that_float32_probabilities_do_not_leave_over():
    tails = np.log([1e-9, 1e-5, 0.25])
    kept = np.log1p(-np.exp(tails))
    ids = np.array([[7], [7], [7], [7]], dtype=np.int32)
    logprobs = np.append(kept, 0.0)[:, None].astype(np.float32)
    targets = TopKTargets(ids, logprobs, np.append(tails, -np.inf).astype(np.float32), kept, kept)
    batch = TopKTargets.batch([targets], Places((1, 5), [1], [4]), Layout("top_k", 9, 1))
    assert batch["token_ids"][0, :, 0].tolist() == [-1, 7, 7, 7, 7]
    np.testing.assert_array_equal(batch["values"][0, 1:, 0], logprobs[:, 0])
    np.testing.assert_allclose(np.exp(batch["values"][0, 1:, 1]), [1e-9, 1e-5, 0.25, 0.0], rtol=1e-5)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"])
@pytest.mark.parametrize(("is_stored", "most_degrees"), [(False, 0.05), (True, 2.5)])
def test_a_sharp_teachers_gradient_survives(kind, is_stored, most_degrees):
    """The 8 bits of a stored log-probability turn it by 2.2 degrees at most; a lost tail would, by 66. The right one is
    taken in float64 from the exact probabilities of the kept ids and of all others together."""
    generator = torch.Generator().manual_seed(0)
    teacher_NV = torch.randn(8, 500, generator=generator, dtype=torch.float64)
    teacher_NV[torch.arange(8), torch.arange(8)] += torch.linspace(14, 34, 8, dtype=torch.float64)
    student_NV = torch.randn(8, 500, generator=generator, dtype=torch.float64)
    layout = Layout("top_k", 500, 16)
    targets = make(layout, teacher_NV.float(), torch.zeros(8, dtype=torch.int64))
    if is_stored:
        targets = written_and_read(targets, layout)
    batch = TopKTargets.batch([targets], Places((1, 8), [0], [8]), layout)
    ids, values = torch.from_numpy(batch["token_ids"][0]), torch.from_numpy(batch["values"][0])
    student = student_NV.float().requires_grad_()
    loss = distill_kernels.linear_sparse_divergence(student, torch.eye(500), ids, values, kind)
    found_NV = torch.autograd.grad(loss, student)[0].double()

    exact_NV = student_NV.clone().requires_grad_()

    def buckets(logits_NV):
        logprobs_NV = logits_NV.log_softmax(-1)
        rest_N1 = logprobs_NV.scatter(1, ids.long(), -torch.inf).logsumexp(1, keepdim=True)
        return torch.cat([logprobs_NV.gather(1, ids.long()), rest_N1], 1)

    log_q_NB, log_p_NB = buckets(exact_NV), buckets(teacher_NV)

    def kl(log_a_NB, log_b_NB):
        return (log_a_NB.exp() * (log_a_NB - log_b_NB)).sum()

    def mixed(teachers):
        return torch.logaddexp(log_p_NB + np.log(teachers), log_q_NB + np.log(1 - teachers))

    definition = {
        "forward_kl": lambda: kl(log_p_NB, log_q_NB),
        "reverse_kl": lambda: kl(log_q_NB, log_p_NB),
        "jsd": lambda: (kl(log_p_NB, mixed(0.5)) + kl(log_q_NB, mixed(0.5))) / 2,
        "skew_forward_kl": lambda: kl(log_p_NB, mixed(0.1)),
        "skew_reverse_kl": lambda: kl(log_q_NB, mixed(0.9)),
        "tvd": lambda: (log_p_NB.exp() - log_q_NB.exp()).abs().sum() / 2,
    }
    right_NV = torch.autograd.grad(definition[kind](), exact_NV)[0]
    cosine_N = torch.nn.functional.cosine_similarity(found_NV, right_NV)
    assert torch.rad2deg(torch.arccos(cosine_N.clamp(max=1))).max() < most_degrees
