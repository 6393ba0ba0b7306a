"""Calibration: identity at first, then what was seen, always monotone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_das.policy import Calibration

GRID = np.linspace(0, 1, 101, dtype=np.float32)[None]


def teach(calibration: Calibration, truth, steps: int = 400) -> None:
    """Chains of 8 drafts: one draw for each, and its nodes agree as far as truth(path) is above it."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        path = np.cumprod(rng.uniform(0.3, 1.0, (8, 8)), axis=1).astype(np.float32)
        true = truth(path)
        calibration.observe(path, np.full(8, 8, np.int32), rng.random((8, 1)) < true)


def test_starts_at_identity():
    assert Calibration()(GRID) == pytest.approx(GRID, abs=1e-3)


@pytest.mark.parametrize("truth", [lambda p: p**2, lambda p: 0.5 * p, np.sqrt, lambda p: p])
def test_learns_what_probabilities_are_worth(truth):
    calibration = Calibration()
    teach(calibration, truth)
    middle = GRID[:, 10:91]
    assert np.abs(calibration(middle) - truth(middle)).mean() < 0.04


def test_worthless_drafts_are_worth_nothing():
    calibration = Calibration()
    teach(calibration, lambda p: 0.0 * p)
    assert calibration(GRID).max() < 0.05
    assert calibration.ratio < 0.05


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), st.integers(0, 4), st.integers(1, 5)),
        min_size=1,
        max_size=40,
    )
)
def test_is_monotone_and_within_bounds(steps):
    calibration = Calibration()
    for path, drafts, accept_len in steps:
        best_first = np.array([sorted(path, reverse=True)], np.float32)
        calibration.observe(best_first, np.array([drafts], np.int32), np.arange(4)[None] < accept_len - 1)
    corrected = calibration(GRID)[0]
    assert (np.diff(corrected) >= 0).all()
    assert corrected[0] >= 0.0
    assert corrected[-1] <= 1.0
