"""How much each request drafts in a step: a fixed budget, or the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.drafts import Drafts
from sglang_das.policy import Plan, Policy, PolicyConfig

Rollouts = NDArray[np.int64]


@dataclass(frozen=True)
class Latency:
    """Seconds of a verify step: base + per_request * requests + per_row * rows."""

    base: float = 0.060
    per_request: float = 0.0
    per_row: float = 0.0015
    packed: bool = False
    """Whether a step has rows for what is drafted alone, and not as many of every request."""

    def __call__(self, drafts: Drafts) -> float:
        """The time of a step with these drafts."""
        requests = len(drafts.sizes)
        rows = requests + int(drafts.sizes.sum()) if self.packed else requests * drafts.width
        return self.base + self.per_request * requests + self.per_row * rows


class Control(Protocol):
    """Decides for the running requests, rollouts known by number."""

    @property
    def width(self) -> int:
        """Most nodes a request may draft."""

    def open(self, rollout: int, problem: int) -> None:
        """A rollout begins."""

    def plan(
        self, rollouts: Rollouts, generated: Rollouts, waiting: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Most nodes and least path probability of each request in the coming step."""

    def choose(self, drafts: Drafts) -> Drafts:
        """What of the drafts is verified, at the width of the step."""

    def believed(self, drafts: Drafts) -> NDArray[np.float32]:
        """The path probabilities of the step's drafts as it takes them to be."""

    def observe(self, drafts: Drafts, emitted: Rollouts, kept: NDArray[np.bool_], seconds: float) -> None:
        """What became of the step's drafts."""

    def close(self, rollout: int, length: int) -> None:
        """A rollout has ended."""


@dataclass(frozen=True)
class FixedBudget:
    """So many nodes for every request in every step, `width`, but none less likely than the floor."""

    width: int
    floor: float = 0.0

    def open(self, rollout: int, problem: int) -> None:
        """Nothing to note."""

    def plan(
        self, rollouts: Rollouts, generated: Rollouts, waiting: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The budget and the floor."""
        n = len(rollouts)
        return np.full(n, self.width, np.int32), np.full(n, self.floor, np.float32)

    def choose(self, drafts: Drafts) -> Drafts:
        """All of them; the widest draft decides the width."""
        return drafts.cut(int(drafts.sizes.max(initial=0)) + 1, drafts.sizes)

    def believed(self, drafts: Drafts) -> NDArray[np.float32]:
        """As the drafter says."""
        return drafts.probabilities

    def observe(self, drafts: Drafts, emitted: Rollouts, kept: NDArray[np.bool_], seconds: float) -> None:
        """Nothing to learn."""

    def close(self, rollout: int, length: int) -> None:
        """Nothing to note."""


class ByPolicy:
    """`sglang_das.policy`, told the times of the latency model."""

    def __init__(self, arm: str, width: int, longest: int, *, packed: bool = False) -> None:
        """`longest` is the limit that rollouts are taken to have had; `packed` as in `Latency`."""
        self.width = width
        self.policy = Policy(PolicyConfig(arm=arm, max_width=width + 1, packed=packed))
        self._longest = longest + 1
        self._rows: dict[int, int] = {}
        self._plan: Plan | None = None

    def open(self, rollout: int, problem: int) -> None:
        """Admits the rollout."""
        self._rows[rollout] = self.policy.open(problem, self._longest)

    def plan(
        self, rollouts: Rollouts, generated: Rollouts, waiting: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What the policy allows."""
        rows = np.array([self._rows[rollout] for rollout in rollouts.tolist()], np.int64)
        self._plan = self.policy.plan(rows, generated.astype(np.int32), waiting)
        return self._plan.max_drafts, self._plan.floor

    def choose(self, drafts: Drafts) -> Drafts:
        """What the policy takes."""
        assert self._plan is not None, "plan comes first"
        choice = self.policy.width(drafts.probabilities, drafts.sizes, self._plan)
        return drafts.cut(choice.width, choice.drafts).widen(choice.width)

    def believed(self, drafts: Drafts) -> NDArray[np.float32]:
        """As the policy corrects them."""
        return self.policy.calibration(drafts.probabilities)

    def observe(self, drafts: Drafts, emitted: Rollouts, kept: NDArray[np.bool_], seconds: float) -> None:
        """Teaches the policy."""
        drafted, accepted = int(drafts.sizes.sum()), int(kept.sum())
        self.policy.observe_step(len(emitted), drafts.width, seconds, drafted, accepted)
        self.policy.observe_drafts(drafts.probabilities, drafts.sizes, emitted.astype(np.int32), kept)

    def close(self, rollout: int, length: int) -> None:
        """The rollout's length is known."""
        self.policy.close(self._rows.pop(rollout), length, finished=True)
