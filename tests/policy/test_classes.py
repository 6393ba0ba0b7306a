"""Length model: classes from histories, survivors, lower bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_das.policy import LONG, MEDIUM, SHORT, LengthModel
from sglang_das.policy.survival import Survival

CAP = 10_000


def model(**changes) -> LengthModel:
    defaults = {"short_quantile": 0.4, "long_quantile": 0.8, "history": 64, "pool": 1024, "max_problems": 1000}
    return LengthModel(**(defaults | changes))


def finish(lengths: LengthModel, problem: int, length: int, *, finished: bool = True, cap: int = CAP) -> None:
    lengths.close(lengths.open(problem, cap), length, finished)


def classify(lengths: LengthModel, row: int, generated: int) -> int:
    return int(lengths.classify(np.array([row]), np.array([generated], np.int32))[0])


def three_problems() -> LengthModel:
    """Problem 0 is short (about 10), 1 medium (100), 2 long (1000)."""
    lengths = model()
    for i in range(20):
        for problem, typical in enumerate((10, 100, 1000)):
            finish(lengths, problem, typical + (i % 5 if problem == 0 else 0))
    return lengths


def test_a_problem_is_judged_by_its_newest_rollouts():
    """A model in training changes how long it answers."""
    lengths = model()
    for length in [100] * 40 + [400] * 24:
        finish(lengths, 0, length)
    row = lengths.open(0, CAP)
    classify(lengths, row, 0)
    average = (40 * 100 + 24 * 400) / 64
    assert lengths.expected(np.array([row]))[0] > 1.2 * average


records = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 30), st.booleans()).map(lambda r: (r[0], r[0] + r[1], r[2])),
    max_size=40,
)


@settings(deadline=None)
@given(records, st.integers(-1, 70))
def test_survival_equals_the_product_over_rollouts_at_risk(seen, x):
    expected = 1.0
    for y in sorted({length for _, length, ended in seen if ended and length <= x}):
        ends = sum(1 for _, length, ended in seen if ended and length == y)
        at_risk = 1 + sum(1 for entry, length, _ in seen if entry < y <= length)
        expected *= 1 - ends / at_risk
    entries, lengths, ended = (np.array([record[i] for record in seen]) for i in range(3))
    survival = Survival(entries.astype(np.int64), lengths.astype(np.int64), ended.astype(bool))
    assert survival.beyond(x) == pytest.approx(expected)


def test_without_history_every_rollout_is_long():
    lengths = model()
    row = lengths.open(7, CAP)
    assert classify(lengths, row, 0) == LONG


def test_a_problem_starts_in_the_class_of_its_history():
    lengths = three_problems()
    rows = [lengths.open(problem, CAP) for problem in range(3)]
    assert lengths.classify(np.array(rows), np.zeros(3, np.int32)).tolist() == [SHORT, MEDIUM, LONG]


def test_unknown_problems_start_long_among_known_ones():
    lengths = three_problems()
    assert classify(lengths, lengths.open(99, CAP), 0) == LONG


@pytest.mark.parametrize("problem", [0, 1, 2])
def test_survivors_become_long(problem):
    lengths = three_problems()
    row = lengths.open(problem, CAP)
    short_below, long_from = lengths.thresholds
    assert classify(lengths, row, short_below) >= MEDIUM
    assert classify(lengths, row, long_from - 1) == LONG
    assert classify(lengths, row, CAP - 1) == LONG


def test_class_never_falls_below_what_is_already_generated():
    lengths = three_problems()
    row = lengths.open(0, CAP)
    classes = [classify(lengths, row, generated) for generated in range(0, 1200, 7)]
    short_below, long_from = lengths.thresholds
    for generated, found in zip(range(0, 1200, 7), classes, strict=True):
        assert found >= (generated >= short_below) + (generated >= long_from)


def test_an_aborted_rollout_counts_as_at_least_this_long():
    """Half the rollouts of a problem are aborted at 10 tokens: those that ended say it is long, and it is."""
    lengths = three_problems()
    for _ in range(40):
        finish(lengths, 5, 10, finished=False)
    for _ in range(10):
        finish(lengths, 5, 1000)
    assert classify(lengths, lengths.open(5, CAP), 0) == LONG
    shorter = three_problems()
    for i in range(40):
        finish(shorter, 5, 10 + i % 5)
    for _ in range(10):
        finish(shorter, 5, 1000)
    assert classify(shorter, shorter.open(5, CAP), 0) == SHORT


def test_a_rollout_cut_at_its_limit_is_a_lower_bound():
    lengths = three_problems()
    for _ in range(20):
        finish(lengths, 6, 10, cap=10)
    assert classify(lengths, lengths.open(6, CAP), 0) == LONG


def test_a_resumed_rollout_counts_once():
    """Aborting at 500 and resuming there must leave the same estimate as never stopping."""
    whole, pieces = three_problems(), three_problems()
    for _ in range(10):
        finish(whole, 8, 1000)
        finish(pieces, 8, 500, finished=False)
        pieces.close(pieces.open(8, CAP, 500), 1000, True)
    assert classify(whole, whole.open(8, CAP), 0) == classify(pieces, pieces.open(8, CAP), 0) == LONG


def test_what_a_rollout_may_generate_bounds_its_class():
    lengths = three_problems()
    short_below, long_from = lengths.thresholds
    assert classify(lengths, lengths.open(2, short_below - 1), 0) == SHORT
    assert classify(lengths, lengths.open(2, long_from - 1), 0) == MEDIUM


def test_running_siblings_outweigh_the_first_to_finish():
    """Those who finish first are the short ones; seven still running say more than one that ended."""
    lengths = three_problems()
    rows = np.array([lengths.open(4, CAP) for _ in range(8)])
    lengths.classify(rows, np.full(8, 10, np.int32))
    lengths.close(int(rows[0]), 10, True)
    assert classify(lengths, int(rows[1]), 10) == LONG


def test_siblings_that_finish_teach_the_running_ones():
    lengths = three_problems()
    rows = [lengths.open(4, CAP) for _ in range(8)]
    assert classify(lengths, rows[-1], 0) == LONG
    for row in rows[:-1]:
        lengths.close(row, 11, True)
    assert classify(lengths, rows[-1], 0) == SHORT


def test_thresholds_follow_the_lengths_seen():
    lengths = model(pool=50)
    for i in range(50):
        finish(lengths, i % 5, 100 + i)
    before = lengths.thresholds
    for i in range(60):
        finish(lengths, i % 5, 1000 + i)
    assert 100 <= before[0] <= before[1] < 150
    assert lengths.thresholds[0] >= 1000


def test_what_one_model_knows_another_goes_on_from():
    first, second = three_problems(), model()
    first.open(7, CAP)  # of which nothing is known yet
    second.go_on_from(first.known())
    rows = [np.array([lengths.open(problem, CAP) for problem in (0, 1, 2, 9)]) for lengths in (first, second)]
    np.testing.assert_allclose(second.expected(rows[1])[:3], first.expected(rows[0])[:3], rtol=0.1)
    for generated in (0, 5, 50, 500):
        at = np.full(4, generated, np.int32)
        assert first.classify(rows[0], at).tolist() == second.classify(rows[1], at).tolist()
    assert second.rollouts == 3 * 16, "the newest of each problem"


def test_rows_are_reused_and_problems_forgotten():
    lengths = model(max_problems=10)
    for i in range(100):
        finish(lengths, i, 20)
    assert lengths.problems == 10
    assert len({lengths.open(i, CAP) for i in range(200)}) == 200


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200), st.booleans()), max_size=60), st.integers(0, 300))
def test_any_history_gives_a_class(history, generated):
    lengths = model()
    for problem, length, finished in history:
        finish(lengths, problem, length, finished=finished)
    assert classify(lengths, lengths.open(0, CAP), generated) in (SHORT, MEDIUM, LONG)
