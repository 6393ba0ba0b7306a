"""Drafting from distributions under the sampler's noise: the Python face (the rule itself is tested in Rust)."""

from typing import Any

import numpy as np
import pytest
from sglang_das import RolloutHistory, step

IDS = np.array([[1, 2, 3, 4, 5, 6, 7, 8]])
PROBABILITIES = np.array([[0.2, 0.18, 0.15, 0.12, 0.11, 0.1, 0.08, 0.06]])


def _known(seeds: list[int]) -> tuple[RolloutHistory, list[Any]]:
    """A history in which token 9 is followed by one of eight, and a rollout for each seed that has come to the 9."""
    history = RolloutHistory()
    past = history.rollout(0)
    past.append([9, 1], np.vstack([IDS, IDS]), np.vstack([PROBABILITIES, PROBABILITIES]))
    past.close()
    return history, [history.rollout(0, [7, 7]) for _ in seeds]


def _picks(seed: int, position: int) -> int:
    """SGLang's `multinomial_with_seed` (`sglang/srt/layers/sampler.py`), for one row."""
    mask = 0xFFFFFFFF

    def scramble(block: int) -> int:
        block = block * 0xCC9E2D51 & mask
        return (block << 15 | block >> 17) * 0x1B873593 & mask

    def fold(state: int, block: int) -> int:
        state ^= scramble(block)
        return ((state << 13 | state >> 19) * 5 + 0xE6546B64) & mask

    scores = []
    for token, probability in zip(IDS[0].tolist(), PROBABILITIES[0].tolist(), strict=True):
        state = 0
        for block in (seed & mask, seed >> 32, position, token):
            state = fold(state & mask, block)
        state ^= 16
        state = (state ^ state >> 16) * 0x85EBCA6B & mask
        state = (state ^ state >> 13) * 0xC2B2AE35 & mask
        state ^= state >> 16
        scores.append(np.log(probability) - np.log(-np.log(state / mask)))
    return int(IDS[0, int(np.argmax(scores))])


def test_drafts_are_what_the_sampler_will_pick() -> None:
    seeds = list(range(3, 1 << 40, 1 << 34))
    _, rollouts = _known(seeds)
    n = len(seeds)
    tokens, _, _, sizes = step(
        rollouts,
        np.full(n, 9),
        np.arange(n + 1),
        max_nodes=np.full(n, 1),
        min_probability=np.zeros(n),
        width=1,
        coupling=np.full(n, 2, np.uint8),
        seeds=np.array(seeds),
        positions=np.full(n, 2),
    )
    assert sizes.tolist() == [1] * n
    expected = [_picks(seed, 2) for seed in seeds]
    assert tokens[:, 0].tolist() == expected
    assert len(set(expected)) > 4
    one_by_one = [r.draft(1, coupling=2, seed=s, position=2).tokens[0] for r, s in zip(rollouts, seeds, strict=True)]
    assert one_by_one == expected


def test_without_noise_the_likeliest_comes_first() -> None:
    _, [rollout] = _known([0])
    rollout.append([9])
    assert rollout.draft(3, coupling=1).tokens[0] == 1
    assert set(rollout.draft(8).tokens[:4].tolist()) == {1, 2, 3, 4}


def test_rejected_drafts_are_learnt_from() -> None:
    history, [rollout] = _known([0])
    rollout.append([50], IDS, PROBABILITIES)
    rollout.reject(np.array([[50, 60]]), np.array([[77, 78]]), np.array([[0.9, 0.05]]))
    rollout.append([60], IDS, PROBABILITIES)
    assert 77 in rollout.draft(8).tokens
    off = RolloutHistory(rejected=False)
    other = off.rollout(0)
    other.append([50], IDS, PROBABILITIES)
    other.reject(np.array([[50, 60]]), np.array([[77, 78]]), np.array([[0.9, 0.05]]))
    other.append([60], IDS, PROBABILITIES)
    assert 77 not in other.draft(8).tokens
    assert history.memory_usage() > 0


def test_learnt_over_all_problems_and_saved(tmp_path: Any) -> None:
    history = RolloutHistory()
    for token in (5, 6, 5, 6, 5):
        history.rollout(0).append([token])
    teacher = history.rollout(0)
    teacher.append([5, 6, 7, 5, 6, 7])
    teacher.close()

    def drafted(history: RolloutHistory) -> list[int]:
        stranger = history.rollout(1, [1, 2])
        stranger.append([5, 6])
        return [int(token) for token in stranger.draft(4).tokens]

    assert drafted(RolloutHistory(shared=False)) == []
    history.save(tmp_path / "history")
    expected = drafted(history)
    assert expected[0] == 7
    assert drafted(RolloutHistory.load(tmp_path / "history")) == expected
    assert drafted(RolloutHistory.load(tmp_path / "history", shared=False)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coupling": [3]}, r"coupling\[0\] is 3: it must be 0"),
        ({"coupling": [2]}, "seeds is None: seeded coupling needs one for each sequence"),
        ({"coupling": [2], "seeds": [1]}, "positions is None"),
        ({"coupling": [0, 0]}, r"len\(coupling\) is 2"),
    ],
)
def test_errors_of_a_step(arguments: dict[str, Any], message: str) -> None:
    _, [rollout] = _known([0])
    with pytest.raises(ValueError, match=message):
        step([rollout], [9], [0, 1], max_nodes=[1], min_probability=[0.0], width=1, **arguments)
    assert len(rollout) == 0


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        (np.array([[1, 2, 3]]), "number of columns of contexts is 3: give the last two tokens"),
        (np.array([[1, -2]]), r"contexts\[0, 1\] is -2: tokens are from 0"),
        (np.array([[1, 2], [3, 4]]), "number of rows of ids is 1"),
    ],
)
def test_errors_of_reject(contexts: Any, message: str) -> None:
    _, [rollout] = _known([0])
    with pytest.raises(ValueError, match=message):
        rollout.reject(contexts, IDS, PROBABILITIES)
