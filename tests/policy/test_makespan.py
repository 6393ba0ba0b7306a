"""Simulated RL epochs: what the policy is for."""

from __future__ import annotations

import pytest

from tests.policy.simulation import Workload, run

SMALL = {"problems": 4, "samples": 6, "median": 80.0}


def makespans(arm: str, workload: Workload, **options) -> tuple[float, float]:
    """Seconds of a cold and of a warm epoch."""
    cold, warm = run(arm, workload, epochs=2, **options).makespans
    return cold, warm


@pytest.mark.parametrize(("slots", "gain"), [(8, 0.10), (4, 0.18)])
def test_makespan_is_below_plain_and_every_fixed_width(slots, gain):
    workload = Workload(slots=slots)
    plain_cold, plain = makespans("off", workload)
    cold, warm = makespans("das-classes", workload)
    best_fixed = min(makespans(f"fixed:{drafts}", workload)[1] for drafts in (1, 2, 3))
    assert warm < (1 - gain) * plain
    assert warm < 1.02 * best_fixed
    assert cold < plain_cold


@pytest.mark.parametrize("slots", [2, 16])
def test_unpredictable_text_costs_next_to_nothing(slots):
    """A drafter that knows it is guessing, and one that claims eight times its worth."""
    _, plain = makespans("off", Workload(slots=slots, **SMALL))
    for boast in (1.0, 4.0):
        noise = Workload(slots=slots, predictable=0.0, unsure=0.1, overconfident=boast, **SMALL)
        assert makespans("das-classes", noise)[1] < 1.02 * plain


def test_slow_steps_of_a_noisy_machine_do_not_mislead():
    workload = Workload()
    quiet = makespans("das-classes", workload)[1]
    noisy = makespans("das-classes", workload, noise=0.2, outliers=0.2)[1]
    assert noisy < 1.05 * quiet
