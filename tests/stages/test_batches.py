"""Batches are full, fixed by lengths and seed, and spend a baseline's budget."""

import numpy as np
import pytest

from distill.stages._batches import plan_batches, plan_tokens

LENGTHS = list(np.random.default_rng(0).integers(5, 100, size=700))


def test_an_epoch_shows_every_row_about_once():
    plan = plan_batches(LENGTHS, batch_size=20, seed=0, epochs=2)
    counts = np.bincount(plan.batches.reshape(-1), minlength=700)
    assert plan.batches.shape == (70, 20)
    assert counts.sum() == 1400 and counts.min() >= 1 and counts.max() <= 3


def test_the_plan_follows_the_seed_alone():
    one, same, other = (plan_batches(LENGTHS, batch_size=16, seed=s, epochs=1).batches for s in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


def test_more_steps_begin_with_the_same_batches():
    few, many = (plan_batches(LENGTHS, batch_size=16, seed=1, epochs=1, max_steps=n).batches for n in (5, 50))
    assert (few == many[:5]).all()


def test_rows_of_a_batch_are_of_like_length():
    lengths = np.array(LENGTHS)
    plan = plan_batches(LENGTHS, batch_size=20, seed=0, epochs=4)
    padded = sum(20 * lengths[batch].max() for batch in plan.batches)
    shuffled = sum(20 * np.random.default_rng(n).choice(lengths, 20).max() for n in range(plan.steps))
    assert padded < 1.1 * plan.tokens < shuffled
    assert plan.tokens == sum(int(lengths[batch].sum()) for batch in plan.batches)


def test_a_baseline_spends_the_students_budget_on_its_own_rows():
    student = plan_batches(LENGTHS, batch_size=20, seed=0, epochs=3)
    baseline = plan_tokens(LENGTHS[:100], batch_size=20, seed=0, tokens=student.tokens)
    assert abs(baseline.tokens - student.tokens) <= 20 * 100 / 2
    assert baseline.batches.max() < 100


def test_fewer_rows_than_a_batch_repeat():
    plan = plan_batches([7, 9], batch_size=8, seed=0, epochs=1)
    assert plan.batches.shape == (1, 8)


@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_processes_take_the_rows_of_a_batch_in_turn(processes, micro_batches):
    plan = plan_batches(list(range(1, 61)), batch_size=12, seed=1, epochs=2)
    shares = [plan.share(rank, processes, micro_batches) for rank in range(processes)]
    for step in range(plan.steps):
        dealt = [row for share in shares for row in share[step].reshape(-1).tolist()]
        assert sorted(dealt) == sorted(plan.batches[step].tolist())
    assert {share.shape for share in shares} == {(plan.steps, micro_batches, 12 // processes // micro_batches)}
    # a batch is sorted by length: dealt in turn, no process gets all the long rows
    sums = [share[0].sum() for share in shares]
    assert max(sums) - min(sums) <= plan.batches[0].max() - plan.batches[0].min()
