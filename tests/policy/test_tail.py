"""The tail: probabilities of being the last to finish, against a direct simulation."""

from __future__ import annotations

import numpy as np
import pytest
from sglang_das.policy import LengthModel
from sglang_das.policy.tail import Tail, last_to_finish, with_followers


def test_chances_of_being_last_equal_those_of_a_simulation():
    rng = np.random.default_rng(0)
    means = np.array([50.0, 100.0, 200.0, 200.0])
    ahead = np.geomspace(1, 2000, 64)
    beyond = np.exp(-ahead / means[:, None])
    beyond[:, -1] = 0.0
    drawn = rng.exponential(means, (200_000, 4))
    counted = np.bincount(drawn.argmax(axis=1), minlength=4) / len(drawn)
    assert last_to_finish(beyond) == pytest.approx(counted, abs=0.01)


def test_a_certain_last_is_last():
    beyond = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    assert last_to_finish(beyond) == pytest.approx([0.0, 1.0], abs=1e-6)


def test_a_slot_is_held_up_by_whoever_follows_in_it():
    """Half of the slots are refilled: their chances of being the last to be free, against a direct simulation."""
    rng = np.random.default_rng(0)
    means, follower_mean, waiting = np.array([20.0, 30.0, 40.0, 100.0, 150.0, 200.0]), 90.0, 3
    ahead = np.geomspace(1, 4000, 96)
    alone = np.exp(-ahead / means[:, None])
    alone[:, -1] = 0.0
    after = np.maximum(np.subtract.outer(ahead, ahead), 0.0)
    chance = last_to_finish(with_followers(alone, waiting, np.exp(-after / follower_mean)))
    drawn = rng.exponential(means, (100_000, len(means)))
    followed = drawn.argsort(axis=1).argsort(axis=1) < waiting
    busy = drawn + followed * rng.exponential(follower_mean, drawn.shape)
    counted = np.bincount(busy.argmax(axis=1), minlength=len(means)) / len(busy)
    assert chance == pytest.approx(counted, abs=0.03)
    unrefilled = last_to_finish(alone)
    assert np.abs(unrefilled - counted).max() > 0.06  # what the queue changes


@pytest.mark.parametrize("waiting", [0, 1, 2])
def test_the_longer_the_queue_the_more_alike_are_the_slots(waiting):
    lengths = LengthModel(short_quantile=0.4, long_quantile=0.8, history=64, pool=1024, max_problems=100)
    rng = np.random.default_rng(0)
    for _ in range(60):
        for problem, typical in ((0, 100), (1, 1000)):
            lengths.close(lengths.open(problem, 4096), int(typical * rng.lognormal(0, 0.3)), True)
    rows = np.array([lengths.open(problem, 4096) for problem in (0, 0, 1)])
    lengths.classify(rows, np.zeros(3, np.int32))
    fewer, more = (Tail(lengths).shares(rows, w, np.ones(3)) for w in (waiting, waiting + 1))
    assert fewer.sum() == pytest.approx(1.0)
    assert np.ptp(more) < np.ptp(fewer)
    assert Tail(lengths).shares(rows, 3, np.ones(3)) == pytest.approx(1 / 3)


def test_a_rollout_that_takes_a_row_is_judged_at_once():
    """A long one takes the row of a short one between two looks at the tail: it is the one to wait for."""
    lengths = LengthModel(short_quantile=0.4, long_quantile=0.8, history=64, pool=1024, max_problems=100)
    for i in range(60):
        for problem, length in ((0, 100), (1, 1000)):
            lengths.close(lengths.open(problem, 4096), length + i % 7, True)
    tail = Tail(lengths)

    def admit(problem: int) -> int:
        row = lengths.open(problem, 4096)
        tail.open(row)
        return row

    rows = [admit(0) for _ in range(3)]
    lengths.classify(np.array(rows), np.zeros(3, np.int32))
    tail.shares(np.array(rows), 0, np.ones(3))
    lengths.close(rows.pop(), 100, True)
    rows.append(admit(1))
    lengths.classify(np.array(rows), np.array([50, 50, 0], np.int32))
    assert tail.shares(np.array(rows), 0, np.ones(3))[2] > 0.8


def test_remaining_length_follows_problem_and_progress():
    lengths = LengthModel(short_quantile=0.4, long_quantile=0.8, history=64, pool=1024, max_problems=100)
    rng = np.random.default_rng(0)
    typical = (100, 1000)
    for _ in range(100):
        for problem in (0, 1):
            row = lengths.open(problem, 10**5)
            lengths.close(row, int(typical[problem] * rng.lognormal(0, 0.4)), True)
    rows = np.array([lengths.open(problem, 10**5) for problem in (0, 0, 1)])
    lengths.classify(rows, np.array([0, 50, 0], np.int32))
    fresh, halfway, other = lengths.expected(rows)
    mean = np.exp(0.4**2 / 2)
    assert fresh == pytest.approx(100 * mean, rel=0.3)
    assert other == pytest.approx(1000 * mean, rel=0.3)
    assert halfway < fresh - 30


def test_max_new_tokens_bounds_what_remains():
    lengths = LengthModel(short_quantile=0.4, long_quantile=0.8, history=64, pool=1024, max_problems=100)
    for i in range(20):
        lengths.close(lengths.open(0, 10**5), 1000 + i, True)
    row = np.array([lengths.open(0, 30)])
    assert lengths.lasts_beyond(row, np.array([10.0, 29.0, 30.0, 100.0]))[0] == pytest.approx([1, 1, 0, 0], abs=0.1)
    assert lengths.expected(row)[0] <= 30
