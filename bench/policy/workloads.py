"""Epochs to simulate: how long rollouts are, and at every token what a drafter would have said and how far it is right.

All arms decode the same texts and see the same drafts, so they differ only in how they spend the time. A draft has up
to :data:`NODES` nodes, best first, parents before children; its path probabilities are what the drafter claims.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Paths = npt.NDArray[np.float32]
Accepted = npt.NDArray[np.int8]

NODES = 15


@dataclass(frozen=True, eq=False)
class Epoch:
    """Rollouts of an epoch, in the order in which they are submitted."""

    problem: Ints
    """Which prompt each answers, [n]."""
    lengths: Ints
    """Tokens of each, [n]."""
    cap: int
    """`max_new_tokens` of all."""
    path: Paths
    """Claimed path probabilities of the draft at every token, one rollout after the other, [tokens, NODES]."""
    accepted: Accepted
    """How many tokens are accepted if the first 0, 1, ... NODES nodes of it are verified, [tokens, NODES + 1]."""
    worth: Paths
    """What the path probabilities are really worth, [tokens, NODES]: for the oracle only."""

    @cached_property
    def begins(self) -> Ints:
        """Where each rollout's tokens begin, [n]."""
        return np.cumsum(self.lengths) - self.lengths

    def first(self, count: int) -> Epoch:
        """Its first rollouts only."""
        tokens = int(self.lengths[:count].sum())
        rollouts = self.problem[:count], self.lengths[:count]
        return Epoch(*rollouts, self.cap, self.path[:tokens], self.accepted[:tokens], self.worth[:tokens])


def of_chains(agreed: Ints) -> Accepted:
    """`Epoch.accepted` of chains whose first `agreed` nodes are right, [tokens]."""
    accepted: Accepted = np.minimum(np.arange(NODES + 1), agreed[:, None]).astype(np.int8)
    return accepted


@dataclass(frozen=True)
class Workload:
    """Long-tailed rollouts of a few problems, with text that is predictable in stretches.

    Token t of a rollout is guessed right with probability chance[t]: `confident` within predictable stretches, `unsure`
    elsewhere. The defaults give the shape of arXiv 2511.13841's math rollouts, an eighth as long: median 4,000 tokens
    cut at 16,384, 16 samples of each problem.
    """

    problems: int = 8
    samples: int = 16
    median: float = 500.0
    spread_of_problems: float = 0.55
    spread: float = 0.58
    cap: int = 2048
    predictable: float = 0.35
    confident: float = 0.88
    unsure: float = 0.15
    stretch: float = 10.0
    overconfident: float = 1.0
    """Per token, what has chance c is claimed to have c ** (1 / overconfident)."""
    spread_of_yields: float = 0.3
    """Standard deviation, over problems, of the logarithm of the predictable share."""

    def epoch(self, seed: int, warmth: float = 1.0) -> Epoch:
        """One epoch. `warmth` scales the predictable share: history is missing in the first."""
        of_problem = np.random.default_rng([seed // 100, 5])
        rng = np.random.default_rng([seed, 7])
        centre = np.log(self.median) + self.spread_of_problems * of_problem.standard_normal(self.problems)
        shares = self.predictable * warmth * np.exp(self.spread_of_yields * of_problem.standard_normal(self.problems))
        problem = np.tile(np.arange(self.problems), self.samples)
        lengths = np.exp(centre[problem] + self.spread * rng.standard_normal(len(problem)))
        lengths = np.clip(lengths, 4, self.cap).astype(np.int64)
        parts = [
            self._text(rng, int(length) + NODES, min(0.95, shares[p]))
            for p, length in zip(problem, lengths, strict=True)
        ]
        path, agreed, worth = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Epoch(problem, lengths, self.cap, path, of_chains(agreed), worth)

    def sized(self, rollouts: int) -> Workload:
        """As many rollouts, in groups of at most 16 of a problem."""
        return replace(self, problems=max(1, rollouts // 16), samples=min(16, rollouts))

    def epochs(self, count: int, seed: int = 0) -> list[Epoch]:
        """A cold epoch, half as predictable, and warm ones."""
        return [self.epoch(seed * 100 + i, warmth=1.0 if i else 0.5) for i in range(count)]

    def _text(self, rng: np.random.Generator, tokens: int, share: float) -> tuple[Paths, Ints, Paths]:
        at = np.arange(tokens)
        begin = np.maximum.accumulate(np.where(rng.random(tokens) < 1.0 / self.stretch, at, 0))
        sure = (rng.random(tokens) < share)[begin]
        chance = np.where(sure, self.confident, self.unsure) + 0.1 * (rng.random(tokens) - 0.5)
        chance = np.clip(chance, 0.0, 0.99).astype(np.float32)
        right = rng.random(tokens) < chance
        ahead = np.lib.stride_tricks.sliding_window_view
        agreed = np.cumprod(ahead(right, NODES)[:-1], axis=1).sum(axis=1)
        worth = np.cumprod(ahead(chance, NODES)[:-1], axis=1)
        claimed = worth if self.overconfident == 1.0 else worth ** np.float32(1.0 / self.overconfident)
        return claimed.astype(np.float32), agreed, worth
