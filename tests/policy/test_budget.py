"""Budgets: the corrected equations minimise what they say they minimise, and the acceptance model finds its curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_das.policy.acceptance import AcceptanceModel
from sglang_das.policy.budget import solve


def accepted(lengths, alpha, k, proposals):
    return k * lengths * (1 - np.exp(-alpha * proposals / lengths))


def makespan(passes, lengths, alpha, k, base, per_row):
    """J(N), elementwise, with the least p_i that meet the constraint, by equation (3) alone."""
    passes = np.asarray(passes)[..., None]
    missing = np.maximum(lengths - passes, 0.0)
    reachable = missing < k * lengths
    proposals = -lengths / alpha * np.log(np.where(reachable, 1 - missing / (k * lengths), 1.0))
    assert accepted(lengths, alpha, k, proposals)[reachable] == pytest.approx(missing[reachable], abs=1e-6)
    cost = base * passes[..., 0] + per_row * proposals.sum(axis=-1)
    return np.where(reachable.all(axis=-1), cost, np.inf)


batches = st.lists(st.tuples(st.floats(10, 16000), st.floats(0.1, 3)), min_size=1, max_size=20)


@settings(deadline=None)
@given(batches, st.floats(0.3, 1.0), st.floats(0.5, 500))
def test_no_other_number_of_passes_is_better(batch, k, ratio):
    lengths, alpha = (np.array(column) for column in zip(*batch, strict=True))
    budget = solve(lengths, alpha, np.full(len(lengths), k), base=ratio, per_row=1.0)
    found = ratio * budget.passes + budget.proposals.sum()
    assert found == pytest.approx(makespan(budget.passes, lengths, alpha, k, ratio, 1.0), rel=1e-6)
    grid = np.linspace((1 - k) * lengths.max(), lengths.max(), 1000)
    assert found <= makespan(grid, lengths, alpha, k, ratio, 1.0).min() * 1.001


def test_printed_equations_agree_only_for_k_one():
    lengths, alpha = np.array([16000.0, 4000.0, 1000.0]), np.array([1.0, 0.8, 0.5])
    same = [solve(lengths, alpha, np.ones(3), 300.0, 1.0, printed=printed) for printed in (False, True)]
    assert same[0].proposals == pytest.approx(same[1].proposals, rel=1e-3)
    k = np.full(3, 0.6)
    correct, printed = (solve(lengths, alpha, k, 300.0, 1.0, printed=printed) for printed in (False, True))
    reached = lengths - accepted(lengths, alpha, 0.6, printed.proposals)
    assert lengths[0] - accepted(lengths, alpha, 0.6, correct.proposals)[0] == pytest.approx(correct.passes, rel=1e-3)
    assert reached[0] > 1.1 * printed.passes


@pytest.mark.parametrize(("k", "lands_at"), [(0.8, 0.68), (0.6, 0.82)])
def test_where_the_printed_budget_lands(k, lands_at):
    """Aimed at half its length, a rollout of 16000 tokens under (7) as printed takes this share of it in passes."""
    length = 16000.0
    printed = -length * np.log(1 - k * 0.5)
    assert (length - accepted(length, 1.0, k, printed)) / length == pytest.approx(lands_at, abs=0.01)


def test_dear_rows_mean_no_drafts_and_free_rows_many():
    lengths, alpha = np.array([1000.0, 500.0]), np.array([0.5, 0.5])
    k = np.full(2, 0.7)
    assert solve(lengths, alpha, k, base=1.0, per_row=10.0).proposals.sum() == pytest.approx(0.0, abs=1.0)
    assert solve(lengths, alpha, k, base=1000.0, per_row=1.0).passes < 0.4 * 1000


def test_short_rollouts_need_no_drafts():
    lengths = np.array([10_000.0, 1000.0, 100.0])
    proposals = solve(lengths, np.ones(3), np.full(3, 0.7), 300.0, 1.0).proposals
    assert proposals[0] > 0
    assert proposals[1:].tolist() == [0.0, 0.0]


CHAINS = np.broadcast_to(0.8 ** np.arange(1, 16), (8, 15)).astype(np.float32)
"""Path probabilities of eight chains that agree with 0.8 per token."""


def shown_chains() -> tuple[AcceptanceModel, np.ndarray]:
    """A model that has seen them for a while, in rollouts of one problem, and their rows."""
    model, rows = AcceptanceModel(15, 100), np.arange(8)
    for row in rows:
        model.open(int(row), 0)
    all_of_them = np.full(8, 15, np.int32)
    for _ in range(64):
        model.observe(rows, CHAINS, all_of_them, all_of_them)
    return model, rows


def test_the_acceptance_curve_is_found():
    """a(d) = 4 (1 - 0.8^d), at most 4/5 of a text from drafts."""
    model, rows = shown_chains()
    for drafts in range(1, 16):
        share = 4 * (1 - 0.8**drafts) / (1 + 4 * (1 - 0.8**drafts))
        effort = drafts / (1 + 4 * (1 - 0.8**drafts))
        assert model.k * (1 - np.exp(-model.alpha * effort)) == pytest.approx(share, abs=0.05)
    alpha, k = model.curve(rows)
    assert alpha == pytest.approx(model.alpha, rel=0.1)
    assert k == pytest.approx(model.k, rel=0.1)


def share(model: AcceptanceModel, rows: np.ndarray, effort: float) -> np.ndarray:
    """A / l at p / l = effort."""
    alpha, k = model.curve(rows)
    return k * (1 - np.exp(-alpha * effort))


def test_a_problem_whose_drafts_promise_nothing_has_a_budget_too():
    model = AcceptanceModel(nodes=4, max_problems=8)
    rows = np.array([0, 1])
    for row in rows:
        model.open(row, problem=row)
    hopeless = np.array([[1e-6] * 4, [0.0] * 4], np.float32)
    for _ in range(600):
        model.observe(rows, hopeless, np.full(2, 4, np.int32), np.full(2, 4, np.int32))
    alpha, k = model.curve(rows)
    assert (k > 0).all()
    for printed in (False, True):
        budget = solve(np.array([100.0, 200.0]), alpha, k, 300.0, 1.0, printed=printed)
        assert np.isfinite(budget.proposals).all()


def test_a_small_budget_does_not_shrink_the_next_one():
    """What a request was not allowed to draft says nothing of what its drafts would be worth."""
    model, rows = shown_chains()
    before = share(model, rows, 3.0)
    for allowed in (2, 0):
        few = np.full(8, allowed, np.int32)
        for _ in range(500):
            model.observe(rows, CHAINS[:, : max(allowed, 1)], few, few)
    assert share(model, rows, 3.0) == pytest.approx(before, rel=0.03)


def test_problems_have_curves_of_their_own_and_new_ones_the_common_one():
    model = AcceptanceModel(15, 100)
    rows = np.arange(2)
    for problem in (0, 1):
        model.open(problem, problem)
    path = np.stack((0.9 ** np.arange(1, 16), 0.3 ** np.arange(1, 16))).astype(np.float32)
    for _ in range(256):
        model.observe(rows, path, np.full(2, 15, np.int32), np.full(2, 15, np.int32))
    for problem in (0, 1):  # later rollouts of the same problems, in the other's rows
        model.open(problem, 1 - problem)
    poor, good = share(model, rows, 2.0)
    for found, chance in ((0, 0.3), (1, 0.9)):
        accepted = chance * (1 - chance**15) / (1 - chance)
        at_full_effort = share(model, rows, 15 / (1 + accepted))[found]
        assert at_full_effort == pytest.approx(accepted / (1 + accepted), abs=0.13)
    model.open(2, 99)
    assert poor < share(model, np.array([2]), 2.0)[0] < good


def test_the_least_recently_seen_problem_is_forgotten_first():
    model = AcceptanceModel(4, 2)
    for row, problem in enumerate((0, 1, 0, 2)):
        model.open(row, problem)
        model.observe(
            np.array([row]), np.full((1, 4), 0.9 if problem == 0 else 0.1, np.float32), *2 * [np.full(1, 4, np.int32)]
        )
    for _ in range(64):
        model.observe(np.array([2]), np.full((1, 4), 0.9, np.float32), *2 * [np.full(1, 4, np.int32)])
    kept = model.curve(np.array([2]))[1][0]
    model.open(4, 0)
    model.open(5, 1)
    assert model.curve(np.array([4]))[1][0] == kept
    assert model.curve(np.array([5]))[1][0] == model.k
