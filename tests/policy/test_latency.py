"""Latency model: recovers what it is shown, through outliers, drift and thin data."""

from __future__ import annotations

import numpy as np
import pytest
from sglang_das.policy import LatencyModel

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)


def line(requests: int, width: int) -> float:
    return 0.050 + 0.0005 * requests + 0.0015 * requests * width


def show(model: LatencyModel, cost, steps: int, *, outliers: float = 0.0, noise: float = 0.05, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        requests, width = int(rng.choice((1, 2, 4, 8, 16))), int(rng.choice(WIDTHS))
        seconds = cost(requests, width) * np.exp(noise * rng.standard_normal())
        if rng.random() < outliers:
            seconds *= rng.uniform(2, 10)
        model.observe(requests, requests * width, seconds)


def worst_error(model: LatencyModel, cost, requests=(1, 2, 4, 8, 16)) -> float:
    errors = [model.seconds(b) / [cost(b, width) for width in WIDTHS] - 1 for b in requests]
    return float(np.abs(errors).max())


@pytest.mark.parametrize("outliers", [0.0, 0.2])
def test_recovers_a_line_under_outliers(outliers):
    model = LatencyModel(WIDTHS)
    show(model, line, 2000, outliers=outliers)
    assert worst_error(model, line) < 0.10
    relative = np.array(model.coefficients) / model.coefficients[0]
    assert relative[2] == pytest.approx(0.03, rel=0.15)


def test_predicts_batch_sizes_it_has_not_seen():
    model = LatencyModel(WIDTHS)
    show(model, line, 2000)
    assert worst_error(model, line, requests=(3, 6, 10, 12)) < 0.10


def test_follows_a_curve_that_is_no_line():
    """Flat up to 32 rows, then steep, as on a GPU."""

    def knee(requests: int, width: int) -> float:
        return 0.02 + 0.0004 * max(requests * width - 32, 0)

    model = LatencyModel(WIDTHS)
    show(model, knee, 4000)
    assert worst_error(model, knee) < 0.10


def test_one_slow_first_step_does_not_condemn_a_width():
    model = LatencyModel(WIDTHS)
    for _ in range(50):
        model.observe(8, 8, line(8, 1))
        model.observe(8, 32, line(8, 4))
    model.observe(8, 24, 10 * line(8, 3))
    assert model.seconds(8)[2] < 1.3 * line(8, 3)


def test_load_that_comes_while_one_width_is_used_does_not_make_others_look_cheap():
    model = LatencyModel(WIDTHS)
    rng = np.random.default_rng(1)
    show(model, line, 1000)
    ratio = model.seconds(8)[0] / model.seconds(8)[3]
    for _ in range(500):
        model.observe(8, 32, 1.5 * line(8, 4) * np.exp(0.05 * rng.standard_normal()))
    assert model.seconds(8)[3] == pytest.approx(1.5 * line(8, 4), rel=0.1)
    assert model.seconds(8)[0] / model.seconds(8)[3] == pytest.approx(ratio, rel=0.15)


def test_a_draining_batch_is_not_taken_for_a_falling_load():
    """Steps become shorter as rollouts end; the first ones must be known as dear when the next batch begins."""

    def cost(requests: int, width: int) -> float:
        return 0.0076 + 0.0000285 * requests * width

    model = LatencyModel(WIDTHS)
    rng = np.random.default_rng(2)
    for requests in np.repeat(np.arange(256, 0, -1), 7).tolist():
        model.observe(requests, requests, cost(requests, 1) * np.exp(0.05 * rng.standard_normal()))
    for requests in (256, 128, 32, 4):
        assert model.seconds(requests)[0] == pytest.approx(cost(requests, 1), rel=0.08)
    assert model.relative_error < 0.08


def test_forgets_a_cost_that_has_changed():
    model = LatencyModel(WIDTHS)
    show(model, line, 2000)

    def dearer(requests: int, width: int) -> float:
        return 0.050 + 0.006 * requests * width

    show(model, dearer, 6000)
    assert worst_error(model, dearer) < 0.15


def test_more_rows_never_cost_less():
    model = LatencyModel(WIDTHS)
    show(model, line, 300, noise=0.3, outliers=0.2)
    for requests in range(1, 40):
        assert (np.diff(model.seconds(requests)) >= 0).all()


def test_the_prior_lets_moderate_widths_look_worth_a_try():
    times = LatencyModel(WIDTHS).seconds(8)
    assert times[WIDTHS.index(4)] / times[0] < 1.6
