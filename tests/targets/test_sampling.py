"""Systematic draws against the definition: exact whole numbers, an integral over u, and the dense gradient."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from distill_kernels import linear_divergence, linear_sparse_divergence
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distill.targets import Layout, Places, sampling
from distill.targets.sampled import SampledTargets
from distill.targets.sampling import systematic_draws, uniform_of

# V vocabulary, D draws, U values of the uniform number

WEIGHTS = {
    "one": [1.0],
    "one-hot": [0, 0, 0, 1.0, 0, 0],
    "zeros in front and at the end": [0, 0, 0.25, 0, 0.5, 0.25, 0, 0],
    "a tail of 1e-12": [0.7, 0.3, *[1e-12] * 500],
    "a tail of 1e-12 in front": [*[1e-12] * 500, 0.7, 0.3],
    "not normalised": [30.0, 7.0, 0.5, 4e-7],
    "tiny": [3e-300, 1e-300],
    "equal": [1.0] * 7,
}


def draws_of(weights, uniforms, draws):
    """Drawn ids `[U, D]` from float64 weights that need not add up to one."""
    logprobs_UV = torch.tensor(weights, dtype=torch.float64).log().expand(len(uniforms), -1)
    return systematic_draws(logprobs_UV.exp(), torch.tensor(uniforms, dtype=torch.float64), draws)


def counts_of(drawn_UD, num_tokens):
    return torch.stack([row.bincount(minlength=num_tokens) for row in drawn_UD])


def assert_floor_or_ceil(drawn_UD, weights, draws):
    counts_UV = counts_of(drawn_UD, len(weights)).numpy()
    assert (drawn_UD.diff(dim=1) >= 0).all()
    assert counts_UV.shape[1] == len(weights) and (counts_UV.sum(1) == draws).all()
    total = sum(map(Fraction, weights))
    for token, weight in enumerate(weights):
        expected = float(draws * Fraction(weight) / total)
        least, most = math.floor(expected - 1e-9), math.ceil(expected + 1e-9)
        assert ((least <= counts_UV[:, token]) & (counts_UV[:, token] <= most)).all(), (token, expected)
        assert weight > 0 or not counts_UV[:, token].any()


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("draws", [1, 2, 50, 300])
def test_counts_are_floor_or_ceil_of_hard_distributions(weights, draws):
    uniforms = [0.0, 5e-324, 1e-12, 0.25, 0.5, 0.999, 1 - 1e-12, 1 - 2**-53]
    assert_floor_or_ceil(draws_of(weights, uniforms, draws), weights, draws)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(lambda weights: sum(weights) > 1e-3),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 300),
)
def test_counts_are_floor_or_ceil_of_any_distribution(weights, uniform, draws):
    assert_floor_or_ceil(draws_of(weights, [uniform], draws), weights, draws)


@st.composite
def shares_of_a_grid(draw):
    """Weights that are multiples of 1 / (D * U): the mean over U midpoints is then the integral itself."""
    draws, num_uniforms = draw(st.integers(1, 60)), draw(st.integers(1, 8))
    cuts = draw(st.lists(st.integers(0, draws * num_uniforms), max_size=20))
    return draws, num_uniforms, np.diff([0, *sorted(cuts), draws * num_uniforms])


@settings(deadline=None)
@given(shares_of_a_grid())
@example((50, 4, np.array([1, 0, 199])))
def test_the_integral_over_u_is_draws_times_p(case):
    draws, num_uniforms, shares = case
    midpoints = (np.arange(num_uniforms) + 0.5) / num_uniforms
    counts_UV = counts_of(draws_of((shares / (draws * num_uniforms)).tolist(), midpoints.tolist(), draws), len(shares))
    assert counts_UV.sum(0).tolist() == shares.tolist()


def test_a_point_on_a_boundary_belongs_to_the_token_that_begins_there():
    # points 0, 1/4, 1/2, 3/4
    assert draws_of([0, 0.25, 0.25, 0, 0.5], [0.0], 4).tolist() == [[1, 2, 4, 4]]


def test_the_tail_of_a_large_vocabulary_is_summed_in_float64():
    # in float32 the sum stands still here for six tokens at a time
    weights = np.array([0.9, *[1e-8] * (2**20 - 1)], dtype=np.float32)
    logprobs_UV = torch.from_numpy(weights).log().expand(5, -1)
    uniforms = np.array([0.03, 0.21, 0.5, 0.77, 0.999])
    drawn_UD = systematic_draws(logprobs_UV.exp(), torch.from_numpy(uniforms), 300).numpy()
    p_V = np.exp(np.log(weights).astype(np.float64))
    head, each = p_V[0] / p_V.sum(), p_V[1] / p_V.sum()
    points_UD = (uniforms[:, None] + np.arange(300)) / 300
    expected_UD = np.where(points_UD < head, 0, 1 + np.floor((points_UD - head) / each))
    # the logarithm that was handed over has 24 bits: a millionth of the tail's million tokens
    assert (np.abs(drawn_UD - expected_UD) <= 3).all()
    assert (drawn_UD > 0).sum() >= 15 and len(np.unique(drawn_UD[drawn_UD > 0] % 6)) > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_of_any_dtype(dtype):
    torch.manual_seed(0)
    logprobs_NV = (3 * torch.randn(40, 1003)).log_softmax(-1).to(dtype)
    uniform_N = torch.rand(40, dtype=torch.float64)
    counts_NV = counts_of(systematic_draws(logprobs_NV.exp(), uniform_N, 50), 1003)
    p_NV = logprobs_NV.exp().double()
    expected_NV = 50 * p_NV / p_NV.sum(1, keepdim=True)
    assert (counts_NV >= (expected_NV - 1e-6).floor()).all() and (counts_NV <= (expected_NV + 1e-6).ceil()).all()


def test_rows_are_drawn_alike_in_blocks_of_any_size(monkeypatch):
    torch.manual_seed(0)
    logprobs_NV, uniform_N = torch.randn(7, 33).log_softmax(-1), torch.rand(7, dtype=torch.float64)
    at_once = systematic_draws(logprobs_NV.exp(), uniform_N, 11)
    for rows in (1, 2, 3):
        monkeypatch.setitem(sampling.BLOCK_BYTES, "cpu", rows * 33 * 8)
        assert (systematic_draws(logprobs_NV.exp(), uniform_N, 11) == at_once).all()
    monkeypatch.setitem(sampling.BLOCK_BYTES, "cpu", 1)
    assert (systematic_draws(logprobs_NV.exp(), uniform_N, 11) == at_once).all()
    one_by_one = [systematic_draws(logprobs_NV[n : n + 1].exp(), uniform_N[n : n + 1], 11) for n in range(7)]
    assert (torch.cat(one_by_one) == at_once).all()


def test_no_rows():
    assert systematic_draws(torch.zeros(0, 9), torch.zeros(0, dtype=torch.float64), 4).shape == (0, 4)


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**70), st.integers(0, 40), st.integers(0, 40))
def test_a_positions_number_does_not_depend_on_who_else_is_asked(key, seed, start, length):
    whole = uniform_of(key, seed, range(100))
    assert (uniform_of(key, seed, range(start, start + length)) == whole[start : start + length]).all()
    assert ((whole >= 0) & (whole < 1)).all()


def test_numbers_follow_key_seed_and_position():
    key = bytes(range(16))
    others = [bytes([*key[:at], key[at] ^ 1, *key[at + 1 :]]) for at in range(16)]
    rows = [uniform_of(key, 0, range(500)), uniform_of(key, 1, range(500))]
    rows += [uniform_of(other, 0, range(500)) for other in others]
    numbers = np.array(rows)
    assert len(np.unique(numbers)) == numbers.size
    assert np.abs(np.corrcoef(numbers) - np.eye(len(rows))).max() < 0.2
    # uniform: 9,000 numbers in 20 boxes, chi-squared with 19 degrees of freedom
    boxes = np.bincount((numbers.reshape(-1) * 20).astype(int), minlength=20)
    assert ((boxes - 450) ** 2 / 450).sum() < 50


def test_numbers_are_the_high_53_bits_of_philox():
    # a store that is finished by another version of numpy must get the same draws
    words = [0x03020100, 0x07060504, 0x0B0A0908, 0x0F0E0D0C]
    raw = np.random.Philox(np.random.SeedSequence([3, *words])).random_raw(64)
    assert uniform_of(bytes(range(16)), 3, range(64)).tolist() == [int(word >> np.uint64(11)) / 2**53 for word in raw]


def test_the_mean_loss_and_gradient_are_the_dense_ones():
    """In float64 with shares of a grid, so that the mean over eight midpoints is exact: no standard error is needed."""
    draws, num_uniforms, layout = 16, 8, Layout("sampled", 12, 16)
    random = np.random.default_rng(0)
    shares_NV = random.multinomial(draws * num_uniforms - 12, random.dirichlet(np.full(12, 0.3), size=5)) + 1
    p_NV = torch.from_numpy(shares_NV) / (draws * num_uniforms)
    hidden_ND = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    head_VD = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    teacher_NV = p_NV.double().log()
    dense = linear_divergence(hidden_ND, head_VD, teacher_NV, torch.eye(12, dtype=torch.float64), "forward_kl")

    entropy_N = -(teacher_NV.exp() * teacher_NV).sum(1)
    losses = []
    for uniform in (np.arange(num_uniforms) + 0.5) / num_uniforms:
        drawn_ND = systematic_draws(teacher_NV.exp(), torch.full((5,), uniform, dtype=torch.float64), draws)
        targets = SampledTargets.of_draws(drawn_ND.numpy(), entropy_N.numpy())
        batch = SampledTargets.batch([targets], Places((1, 5), [0], [5]), layout)
        ids, values = torch.from_numpy(batch["token_ids"][0]), torch.from_numpy(batch["values"][0]).double()
        losses.append(linear_sparse_divergence(hidden_ND, head_VD, ids, values, tail="sampled") - entropy_N.sum())

    assert len({round(loss.item(), 6) for loss in losses}) > 1
    mean = sum(losses) / num_uniforms
    torch.testing.assert_close(mean, dense, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(mean, [hidden_ND, head_VD]), torch.autograd.grad(dense, [hidden_ND, head_VD]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
