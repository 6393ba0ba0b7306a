"""Rollouts to measure on: stored ones, grouped by problem, and live ones that resemble them."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]

KINDS = ("random", "near-duplicate", "trace")
LIVE = 256
"""Live requests, of which a batch takes the first ones."""
LIVE_TOKENS = 640
"""Tokens of a live request: those it has said when it is opened, and those it says while it is measured."""
VOCABULARY = 150_000
ROLLOUT_TOKENS = 2_000
GROUP = 16
"""Rollouts per problem in made-up data."""
NOISE = 0.05
"""Part of the tokens of a near-duplicate that are drawn anew."""


@dataclass(frozen=True)
class Workload:
    """Stored rollouts with the problem of each, together the asked number of tokens, and live ones likewise."""

    stored: list[Tokens]
    problems: list[int]
    live: list[Tokens]
    live_problems: list[int]

    @property
    def tokens(self) -> int:
        """Stored tokens."""
        return sum(map(len, self.stored))


def make(kind: str, tokens: int, traces: Path | None = None) -> Workload:
    """The workload of one of `KINDS`; the same arguments give the same tokens."""
    if kind == "trace":
        if traces is None:
            raise ValueError("no directory of traces was given")
        problems = _trace_problems(traces)
    else:
        problems = _made_problems(np.random.default_rng(tokens), alike=kind == "near-duplicate")
    return _collect(problems, tokens)


Problem = tuple[list[Tokens], Callable[[int], Tokens]]
"""Its stored rollouts, and its nth live one."""


def _collect(problems: Iterator[Problem], tokens: int) -> Workload:
    stored: list[Tokens] = []
    keys: list[int] = []
    more: list[Callable[[int], Tokens]] = []
    left = tokens
    while left > 0:
        rollouts, live = next(problems)
        for rollout in rollouts:
            if left > 0:
                stored.append(rollout[:left])
                keys.append(len(more))
                left -= len(stored[-1])
        more.append(live)
    live_problems = [i % len(more) for i in range(LIVE)]
    live_rollouts = [more[key](i // len(more)) for i, key in enumerate(live_problems)]
    return Workload(stored, keys, live_rollouts, live_problems)


def _made_problems(random: np.random.Generator, alike: bool) -> Iterator[Problem]:
    """Problems of random tokens: rollouts that are noisy copies of one text, or have nothing in common. A live one is a
    noisy copy of a stored one.
    """

    def fresh() -> Tokens:
        return random.integers(0, VOCABULARY, ROLLOUT_TOKENS, dtype=np.int32)

    while True:
        copies = _NoisyCopies(fresh(), random)
        rollouts = [copies(i) if alike else fresh() for i in range(GROUP)]
        yield rollouts if alike else [copies.text, *rollouts[1:]], copies


class _NoisyCopies:
    """Copies of a text in which some tokens are others."""

    def __init__(self, text: Tokens, random: np.random.Generator) -> None:
        self.text, self._random = text, random

    def __call__(self, _: int) -> Tokens:
        others = self._random.integers(0, VOCABULARY, len(self.text), dtype=np.int32)
        return np.where(self._random.random(len(self.text)) < NOISE, others, self.text)


def _trace_problems(directory: Path) -> Iterator[Problem]:
    """Recorded rollouts: three quarters of each file's are stored, pieces of the others live. When the files are used
    up, they come again with other token ids, as other problems.
    """
    files = [_read(path) for path in sorted(directory.glob("*.npz"))]
    if not files:
        raise ValueError(f"no .npz files in {directory}")
    vocabulary = 1 + max(int(rollout.max()) for rollouts in files for rollout in rollouts)
    round_ = 0
    while True:
        for rollouts in files:
            renamed = [((rollout + 7919 * round_) % vocabulary).astype(np.int32) for rollout in rollouts]
            cut = max(1, 3 * len(renamed) // 4)
            yield renamed[:cut], _Pieces(renamed[cut:] or renamed)
        round_ += 1


class _Pieces:
    """Pieces of rollouts, from one after another, at other places each time round."""

    def __init__(self, rollouts: list[Tokens]) -> None:
        self._rollouts = [rollout for rollout in rollouts if len(rollout) >= LIVE_TOKENS]

    def __call__(self, n: int) -> Tokens:
        rollout = self._rollouts[n % len(self._rollouts)]
        start = n * 977 % (len(rollout) - LIVE_TOKENS + 1)
        return rollout[start : start + LIVE_TOKENS]


def _read(path: Path) -> list[NDArray[np.int64]]:
    """A trace file has `tokens`, all rollouts one after another, and `offsets`, where each begins, and the end."""
    with np.load(path) as file:
        tokens, offsets = file["tokens"].astype(np.int64), file["offsets"]
    return [tokens[start:end] for start, end in itertools.pairwise(offsets)]
