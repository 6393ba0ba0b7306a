"""Threads: appenders and drafters on one tree, and on one sequence."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from sglang_das import RolloutHistory, SuffixTree

THREADS = 6


@pytest.mark.timeout(60)
def test_appenders_and_drafters() -> None:
    """Every draft is well formed, and when all is closed the counts are those of a tree that one thread filled."""
    random = np.random.default_rng(1)
    base = random.integers(0, 6, 2000)
    texts = [np.where(random.random(2000) < 0.05, random.integers(0, 200, 2000), base) for _ in range(THREADS)]
    tree, barrier = SuffixTree(), Barrier(THREADS)

    def rollout(text: np.ndarray) -> None:
        sequence = tree.sequence(context=text[:10])
        barrier.wait()
        for at in range(0, len(text), 5):
            sequence.append(text[at : at + 5])
            draft = sequence.draft(max_tokens=8)
            assert (draft.parents < np.arange(len(draft))).all()
            assert (np.diff(draft.probabilities) <= 0).all()
            assert ((draft.probabilities > 0) & (draft.probabilities <= 1)).all()
            tree.draft(text[max(0, at - 10) : at + 5], max_tokens=4)
        sequence.close()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(rollout, texts))
    tree.check_integrity()

    alone = SuffixTree()
    for text in texts:
        sequence = alone.sequence()
        sequence.append(text)
        sequence.close()
    assert len(tree) == len(alone)
    for text in texts:
        for at in range(0, 1900, 37):
            for length in (1, 2, 5, 12, 64):
                string = text[at : at + length]
                assert tree.count(string) == alone.count(string)
    context = texts[0][:50]
    np.testing.assert_array_equal(tree.draft(context).probabilities, alone.draft(context).probabilities)


@pytest.mark.timeout(60)
def test_one_sequence_from_many_threads() -> None:
    tree = SuffixTree()
    sequence = tree.sequence()

    def work(token: int) -> None:
        for _ in range(300):
            sequence.append([token, token, token])
            sequence.draft(max_tokens=4)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    sequence.close()
    tree.check_integrity()
    assert len(sequence) == 900 * THREADS
    # Each append stays in one piece.
    assert all(tree.count([token]) == 900 for token in range(THREADS))
    assert sum(tree.count([token, other]) for token in range(THREADS) for other in range(THREADS)) == 900 * THREADS - 1
    assert all(tree.count([token, token]) >= 600 for token in range(THREADS))


@pytest.mark.timeout(60)
def test_history_from_many_threads() -> None:
    history = RolloutHistory(window=2, max_bytes=3_000_000)

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for i in range(60):
            rollout = history.rollout(int(random.integers(0, 8)))
            for _ in range(10):
                rollout.append(random.integers(0, 20, 10))
                rollout.draft(max_tokens=4)
            if i % 3:
                rollout.close()
            if seed == 0:
                history.advance()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    stats = history.stats()
    assert stats["generation"] == 60
    assert stats["running"] == 0
    for problem in range(8):
        tree = history.tree(problem)
        if tree is not None:
            tree.check_integrity()
