"""The rollout history: windows, budgets, abandoned rollouts."""

import gc
from pathlib import Path

import numpy as np
import pytest
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
    history = RolloutHistory(shared=False, window=window)
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
    history = RolloutHistory(shared=False, window=1)
    assert history.generation == 0
    add(history, 1, [1, 2])
    add(history, 1, [1, 2])
    assert history.stats()["rollouts"] == 2
    # A new version makes room for the next visit: with a window of one, all of it.
    assert (history.advance(), history.generation) == (1, 1)
    assert 1 not in history
    add(history, 2, [5])
    add(history, 1, [3])
    assert history.stats() == {
        "generation": 1,
        "problems": 2,
        "rollouts": 2,
        "running": 0,
        "tokens": 2,
        "bytes": history.memory_usage(),
        "rebuilding": 0,
        "expired_rollouts": 2,
        "evicted_problems": 0,
    }
    assert (1 in history, 3 in history, len(history)) == (True, False, 2)
    # Versions that pass without a visit take nothing more.
    history = RolloutHistory(shared=False, window=2)
    add(history, 1, [1, 2])
    for _ in range(5):
        history.advance()
    assert history.stats()["rollouts"] == 1


def test_problems_do_not_mix() -> None:
    history = RolloutHistory(shared=False)
    add(history, 1, [1, 2, 3])
    other = history.rollout(2)
    other.append([1, 2])
    assert len(other.draft()) == 0
    same = history.rollout(1)
    same.append([1, 2])
    assert same.draft(1).tokens.tolist() == [3]


def test_abandoned_rollouts_keep_their_tokens() -> None:
    history = RolloutHistory(shared=False)
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

    history = RolloutHistory(shared=False)
    fill(0)
    size = history.memory_usage()
    budget = 4 * size + size // 2
    history = RolloutHistory(shared=False, max_bytes=budget)
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
    history = RolloutHistory(shared=False, max_bytes=200_000)
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
    history = RolloutHistory(shared=False, window=1)
    for _ in range(4):
        for _ in range(4):
            add(history, 1, random.integers(0, 5000, 5000).tolist())
        used = history.memory_usage()
        history.advance()
    add(history, 1, [1])
    history.maintain()
    assert history.memory_usage() < used / 10


def test_a_sequence_outlives_its_history() -> None:
    history = RolloutHistory(shared=False)
    rollout = history.rollout(1)
    del history
    gc.collect()
    rollout.append([1, 2, 1])
    assert rollout.draft(1).tokens.tolist() == [2]
    rollout.close()


def test_rollouts_run_on_while_visits_expire() -> None:
    history = RolloutHistory(shared=False, window=3)
    add(history, 1, [1, 2, 3, 4])
    history.advance()
    add(history, 1, [1, 2, 5, 6])
    history.advance()
    running = history.rollout(1)
    running.append([1, 2])
    before = running.draft(4).tokens.tolist()
    assert 3 in before
    history.advance()
    # The one that runs still sees what has left; one that begins does not.
    assert running.draft(4).tokens.tolist() == before
    new = history.rollout(1)
    new.append([1, 2])
    assert set(new.draft(9).tokens.tolist()) == {5, 6}
    # What it said since joins the others at the next rebuild after its end.
    running.append([7, 8, 9])
    running.close()
    assert history.stats()["rollouts"] == 3
    history.advance()
    later = history.rollout(1)
    later.append([7, 8])
    assert later.draft(1).tokens.tolist() == [9]


@given(
    st.sampled_from([1.0, 0.8, 0.25]),
    st.lists(st.lists(st.tuples(st.integers(0, 2), st.floats(0.25, 16)), max_size=4), min_size=1, max_size=5),
)
@settings(deadline=None)
def test_older_visits_weigh_less(decay: float, visits: list[list[tuple[int, float]]]) -> None:
    history, seen = RolloutHistory(shared=False, window=20, decay=decay), []
    for visit in visits:
        for token, weight in visit:
            rollout = history.rollout(1, weight=weight)
            rollout.append([token, token])
            rollout.close()
        if visit:
            seen.append(visit)
        history.advance()
    tree = history.tree(1)
    if tree is None:
        assert not seen
        return
    expected = [0.0] * 3
    for age, visit in enumerate(reversed(seen)):
        for token, weight in visit:
            expected[token] += weight * decay**age
    # A tree that was made anew is made for the next visit, so only the proportions are the same.
    found = [tree.weight([token, token]) for token in range(3)]
    np.testing.assert_allclose(np.array(found) / sum(found), np.array(expected) / sum(expected), atol=1e-5)


def test_a_reward_weighs_from_the_next_rebuild_on() -> None:
    history = RolloutHistory(shared=False)
    for token, reward in ((2, 4.0), (3, 0.0), (4, 1.0)):
        rollout = history.rollout(1)
        rollout.append([1, token])
        rollout.close(weight=reward)
    tree = history.tree(1)
    assert tree is not None
    assert [tree.weight([1, token]) for token in (2, 3, 4)] == [1, 1, 1]
    history.advance()
    tree = history.tree(1)
    assert tree is not None
    assert [tree.weight([1, token]) for token in (2, 3, 4)] == [4, 0, 1]
    assert history.stats()["expired_rollouts"] == 1


def test_decayed_text_is_drafted_with_less_probability() -> None:
    def probabilities(decay: float) -> dict[int, float]:
        history = RolloutHistory(shared=False, decay=decay)
        add(history, 1, [1, 2])
        history.advance()
        add(history, 1, [1, 3])
        rollout = history.rollout(1)
        rollout.append([1])
        draft = rollout.draft()
        return dict(zip(draft.tokens.tolist(), draft.probabilities.tolist(), strict=True))

    even, decayed = probabilities(1.0), probabilities(0.25)
    assert even[2] == even[3]
    assert decayed[3] / decayed[2] == pytest.approx(4, rel=1e-5)


def test_a_history_survives_in_a_file(tmp_path: Path) -> None:
    history = RolloutHistory(shared=False, window=3, decay=0.5, max_bytes=10_000_000)
    random = np.random.default_rng(5)
    for _ in range(4):
        for problem in range(3):
            rollout = history.rollout(problem)
            tokens = random.integers(0, 4, 50)
            ids = np.stack([tokens, tokens + 10], 1)
            rollout.append(tokens, ids, np.full((50, 2), 0.5, np.float32))
            rollout.close()
        history.advance()
    file = tmp_path / "history"
    history.save(file)
    history.save(str(file))
    assert [path.name for path in tmp_path.iterdir()] == ["history"]
    loaded = RolloutHistory.load(file)
    assert (loaded.window, loaded.decay, loaded.max_bytes, loaded.max_depth) == (3, 0.5, 10_000_000, 64)
    assert RolloutHistory.load(file, window=2, max_bytes=1 << 30).window == 2
    loaded.maintain()
    for problem in range(3):
        pair = [one.rollout(problem) for one in (history, loaded)]
        for token in random.integers(0, 4, 20).tolist():
            for rollout in pair:
                rollout.append([token])
            for name in ("tokens", "parents", "probabilities"):
                np.testing.assert_array_equal(getattr(pair[0].draft(), name), getattr(pair[1].draft(), name))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="truncated"):
        RolloutHistory.load(file)
    with pytest.raises(FileNotFoundError, match="nothing"):
        RolloutHistory.load(tmp_path / "nothing")
    with pytest.raises(OSError, match="directory"):
        history.save(tmp_path / "no" / "directory")
