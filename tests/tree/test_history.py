"""The rollout history: windows, budgets, abandoned rollouts."""

import gc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_das import RolloutHistory, SuffixTree


def add(history: RolloutHistory, problem: int, tokens: list[int]) -> None:
    rollout = history.rollout(problem)
    rollout.append(tokens)
    rollout.close()


@given(
    st.integers(1, 3),
    st.lists(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), max_size=3), min_size=1, max_size=7),
)
@settings(deadline=None)
def test_a_problem_keeps_its_last_visits(window: int, visits: list[list[list[int]]]) -> None:
    """What the history drafts is what a fresh tree over the rollouts inside the window drafts."""
    history = RolloutHistory(window=window)
    inside: list[list[list[int]]] = []
    for visit in visits:
        for tokens in visit:
            add(history, 7, tokens)
        if visit:
            inside.append(visit)
        history.advance()
    new = history.rollout(7, context=[1, 2])
    kept = inside[-window + 1 :] if window > 1 else []
    tree = SuffixTree()
    for tokens in (tokens for visit in kept for tokens in visit):
        sequence = tree.sequence()
        sequence.append(tokens)
        sequence.close()
    twin = tree.sequence(context=[1, 2])
    for token in (0, 1, 2, 0):
        for sequence in (new, twin):
            sequence.append([token])
        for name in ("tokens", "parents", "probabilities"):
            np.testing.assert_array_equal(getattr(new.draft(), name), getattr(twin.draft(), name))
    stats = history.stats()
    assert stats["rollouts"] == 1 + sum(map(len, kept))
    assert stats["running"] == 1
    assert stats["tokens"] == 4 + sum(len(tokens) for visit in kept for tokens in visit)


def test_generations() -> None:
    history = RolloutHistory(window=1)
    assert history.generation == 0
    add(history, 1, [1, 2])
    add(history, 1, [1, 2])
    assert history.stats()["rollouts"] == 2
    assert (history.advance(), history.generation) == (1, 1)
    # Only a visit makes older rollouts leave, not the passing of versions.
    assert history.stats()["rollouts"] == 2
    add(history, 2, [5])
    add(history, 1, [3])
    assert history.stats() == {
        "generation": 1,
        "problems": 2,
        "rollouts": 2,
        "running": 0,
        "tokens": 2,
        "bytes": history.memory_usage(),
        "expired_rollouts": 2,
        "evicted_problems": 0,
    }
    assert (1 in history, 3 in history, len(history)) == (True, False, 2)


def test_problems_do_not_mix() -> None:
    history = RolloutHistory()
    add(history, 1, [1, 2, 3])
    other = history.rollout(2)
    other.append([1, 2])
    assert len(other.draft()) == 0
    same = history.rollout(1)
    same.append([1, 2])
    assert same.draft(1).tokens.tolist() == [3]


def test_abandoned_rollouts_keep_their_tokens() -> None:
    history = RolloutHistory()
    rollout = history.rollout(1)
    rollout.append([1, 2, 3])
    del rollout
    gc.collect()
    assert history.stats()["running"] == 0
    tree = history.tree(1)
    assert tree is not None
    assert tree.count([2, 3]) == 1
    assert history.tree(2) is None


def test_the_byte_budget_drops_the_problem_visited_least_recently() -> None:
    random = np.random.default_rng(0)

    def fill(problem: int) -> None:
        add(history, problem, random.integers(0, 1000, 4000).tolist())

    history = RolloutHistory()
    fill(0)
    size = history.memory_usage()
    budget = 4 * size + size // 2
    history = RolloutHistory(max_bytes=budget)
    for problem in range(4):
        fill(problem)
    # Problem 0 is visited again, so problems 1 and 2 are next to go.
    add(history, 0, [1])
    fill(4)
    fill(5)
    assert [problem in history for problem in range(6)] == [True, False, False, True, True, True]
    assert history.stats()["evicted_problems"] == 2
    assert history.memory_usage() <= budget


def test_a_problem_with_running_rollouts_stays() -> None:
    history = RolloutHistory(max_bytes=200_000)
    running = history.rollout(1)
    running.append(np.random.default_rng(0).integers(0, 10000, 20_000))
    assert history.memory_usage() > 200_000
    add(history, 2, [1])
    # Too large for the budget: it alone remains, until it ends.
    assert (1 in history, 2 in history) == (True, False)
    running.append([1, 2, 1])
    assert running.draft(1).tokens.tolist() == [2]
    running.close()
    assert len(history) == 0


def test_memory_returns_when_visits_expire() -> None:
    random = np.random.default_rng(0)
    history = RolloutHistory(window=1)
    for _ in range(4):
        for _ in range(4):
            add(history, 1, random.integers(0, 5000, 5000).tolist())
        used = history.memory_usage()
        history.advance()
    add(history, 1, [1])
    assert history.memory_usage() < used / 10


def test_a_sequence_outlives_its_history() -> None:
    history = RolloutHistory()
    rollout = history.rollout(1)
    del history
    gc.collect()
    rollout.append([1, 2, 1])
    assert rollout.draft(1).tokens.tolist() == [2]
    rollout.close()
