"""Threads: appenders and drafters on one tree, and on one sequence."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from sglang_das import RolloutHistory, SuffixTree, step

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


@pytest.mark.timeout(120)
def test_drafts_do_not_depend_on_when_trees_are_rebuilt() -> None:
    """One thread per problem drafts and appends while another moves the version on: each drafts as it would alone."""
    texts = np.random.default_rng(2).integers(0, 5, (THREADS, 6, 400))

    def visit(history: RolloutHistory, problem: int, text: np.ndarray) -> list[bytes]:
        rollout, drafts = history.rollout(problem, context=[problem, 1]), []
        for at in range(0, len(text), 4):
            rollout.append(text[at : at + 4])
            draft = rollout.draft(max_tokens=8)
            drafts.append(draft.tokens.tobytes() + draft.probabilities.tobytes())
        rollout.close()
        return drafts

    def alone(problem: int) -> list[list[bytes]]:
        history, drafts = RolloutHistory(shared=False, window=2, decay=0.5), []
        for text in texts[problem]:
            drafts.append(visit(history, problem, text))
            history.advance()
            history.maintain()
        return drafts

    together, barrier = (
        RolloutHistory(shared=False, window=2, decay=0.5),
        Barrier(THREADS, action=lambda: together.advance()),
    )

    def one_of_many(problem: int) -> list[list[bytes]]:
        drafts = []
        for text in texts[problem]:
            drafts.append(visit(together, problem, text))
            barrier.wait()
        return drafts

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(one_of_many, range(THREADS)))
    assert found == [alone(problem) for problem in range(THREADS)]
    assert together.stats()["expired_rollouts"] == 5 * THREADS


@pytest.mark.timeout(120)
def test_steps_drafts_rebuilds_and_files_at_once(tmp_path: Path) -> None:
    """Everything at the same time: what is left is whole, and what is saved can be loaded."""
    history, file = RolloutHistory(window=2, decay=0.9, max_bytes=8_000_000), tmp_path / "history"
    ids, probabilities = np.tile(np.arange(4), (16, 1)), np.full((16, 4), 60, np.uint8)

    def steps(seed: int) -> None:
        random = np.random.default_rng(seed)
        for round_ in range(12):
            rollouts = [history.rollout(problem) for problem in range(8)]
            for _ in range(10):
                tokens = random.integers(0, 6, 16)
                arguments = (np.arange(9) * 2, np.full(8, 6), np.zeros(8), 6)
                drafted, *_ = step(rollouts, tokens, *arguments, ids=ids, probabilities=probabilities)
                assert ((drafted >= 0) & (drafted < 6)).all()
            for i, rollout in enumerate(rollouts):
                rollout.close(weight=i / 4 if round_ % 2 else None)

    def others(seed: int) -> None:
        for _ in range(20):
            history.advance()
            history.save(file)
            assert RolloutHistory.load(file, max_bytes=seed * 1_000_000).generation > 0

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(steps, 1), pool.submit(others, 2), pool.submit(steps, 3), pool.submit(others, 4)]:
            done.result()
    assert history.stats()["running"] == 0
    for problem in range(8):
        tree = history.tree(problem)
        if tree is not None:
            tree.check_integrity()
    assert [path.name for path in tmp_path.iterdir()] == ["history"]
