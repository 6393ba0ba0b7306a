"""Pace: tokens per step by rollout, and that the batch is taken to wait for the slow."""

from __future__ import annotations

import numpy as np
import pytest
from sglang_das.policy import LengthModel
from sglang_das.policy.pace import Pace
from sglang_das.policy.tail import Tail


def test_each_rollout_has_its_own_pace_and_a_new_one_that_of_the_batch():
    pace = Pace()
    rows = np.arange(2)
    for row in range(3):
        pace.open(row)
    for _ in range(200):
        pace.observe(rows, np.array([1, 5], np.int32))
    slow, fast, new = pace(np.arange(3))
    assert slow == pytest.approx(1.0, abs=0.4)
    assert fast == pytest.approx(5.0, abs=0.4)
    assert new == pytest.approx(3.0, abs=0.1)
    pace.open(1)
    assert pace(np.arange(3))[1] < fast


def test_of_two_as_long_the_slower_is_the_last():
    lengths = LengthModel(short_quantile=0.2, long_quantile=0.8, history=64, pool=1024, max_problems=100)
    for i in range(40):
        lengths.close(lengths.open(0, 10**4), 100 + i, True)
    rows = np.array([lengths.open(0, 10**4) for _ in range(2)])
    even = Tail(lengths).shares(rows, 0, np.ones(2))
    slow, fast = Tail(lengths).shares(rows, 0, np.array([1.0, 3.0]))
    assert even == pytest.approx(0.5, abs=0.01)
    assert slow > 2 * fast
