"""Simulated RL epochs: what the policy is for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.policy.oracle import oracles
from bench.policy.simulation import COSTS, Cost, Noise, PolicyArm, simulate
from bench.policy.workloads import NODES, Epoch, Workload, of_chains

CPU = Cost.line(0.060, 0.0015)
QUEUED = Workload(problems=8, samples=8, median=120, spread_of_problems=0.5, spread=0.5, cap=1024)
SMALL = replace(QUEUED, problems=4, samples=6, median=80)
AT_ONCE = Workload(problems=8, median=120, cap=480)


def makespans(arm: str, workload: Workload, slots: int, cost: Cost = CPU, **options) -> tuple[float, float]:
    """Seconds of a cold and of a warm epoch."""
    cold, warm = simulate(PolicyArm(arm), workload.epochs(2), slots, cost, **options)
    return cold.makespan, warm.makespan


@pytest.mark.parametrize("arm", ["das", "das-classes"])
@pytest.mark.parametrize(("slots", "gain"), [(8, 0.10), (4, 0.18)])
def test_makespan_is_below_plain_and_every_fixed_width(arm, slots, gain):
    plain_cold, plain = makespans("off", QUEUED, slots)
    cold, warm = makespans(arm, QUEUED, slots)
    best_fixed = min(makespans(f"fixed:{drafts}", QUEUED, slots)[1] for drafts in (1, 2, 3))
    assert warm < (1 - gain) * plain
    assert warm < 1.02 * best_fixed
    assert cold < plain_cold


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_batch_is_near_the_oracle_and_far_from_unlimited(packed):
    """All rollouts at once, under the paper's costs, where drafting for all of them loses."""
    epochs, cost = AT_ONCE.epochs(2), COSTS["paper"]

    def warm(arm) -> float:
        return simulate(arm, epochs, 128, cost)[-1].makespan

    das = warm(PolicyArm("das", packed))
    assert das < 1.10 * min(map(warm, oracles(cost, 128, packed)))
    assert das < 0.90 * warm(PolicyArm("unlimited", packed))
    assert das < warm(PolicyArm("off", packed))


@pytest.mark.parametrize("slots", [2, 16])
def test_unpredictable_text_costs_next_to_nothing(slots):
    """A drafter that knows it is guessing, and one that claims much more than its worth."""
    _, plain = makespans("off", SMALL, slots)
    for boast in (1.0, 4.0):
        noise = replace(SMALL, predictable=0.0, unsure=0.1, overconfident=boast)
        assert makespans("das", noise, slots)[1] < 1.02 * plain


def test_slow_steps_of_a_noisy_machine_do_not_mislead():
    quiet = makespans("das", QUEUED, 8)[1]
    noisy = makespans("das", QUEUED, 8, noise=Noise(spread=0.2, outliers=0.2))[1]
    assert noisy < 1.05 * quiet


def test_the_simulation_emits_every_token_once_and_knows_what_plain_decoding_takes():
    epoch = AT_ONCE.epoch(0)
    for arm in ("off", "fixed:3"):
        (outcome,) = simulate(PolicyArm(arm), [epoch], 16, CPU)
        assert outcome.tokens == epoch.lengths.sum()
        assert outcome.live[-1] == (outcome.makespan, 0)
    (plain,) = simulate(PolicyArm("off"), [epoch], len(epoch.lengths), CPU)
    live = (epoch.lengths[:, None] > np.arange(epoch.lengths.max())).sum(axis=0)
    assert plain.makespan == pytest.approx(sum(CPU(n, n) for n in live.tolist()))


def test_a_draft_that_is_always_right_takes_as_many_steps_as_it_must():
    lengths = np.array([160, 80])
    sure = np.ones((240, NODES), np.float32)
    epoch = Epoch(np.zeros(2, np.int64), lengths, 200, sure, of_chains(np.full(240, NODES)), sure)
    (outcome,) = simulate(PolicyArm("unlimited"), [epoch], 2, CPU)
    assert outcome.steps == 160 / (NODES + 1)
