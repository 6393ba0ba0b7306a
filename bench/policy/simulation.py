"""Discrete-event simulation of rollout epochs: some slots, many rollouts, a known cost, known drafts.

A step takes every live rollout, verifies the nodes the arm chooses, and moves each on by what agreed and one token
more. The arm is told noisy step times; the makespan adds up the true ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from sglang_das.policy import Policy, PolicyConfig, WidthChoice

from .workloads import NODES, Epoch, Ints, Paths

Kept = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cost:
    """True step time in seconds: per_request * requests + a curve over rows, linear between its points and beyond."""

    rows: tuple[float, ...]
    seconds: tuple[float, ...]
    per_request: float = 0.0

    @classmethod
    def line(cls, base: float, per_row: float, per_request: float = 0.0) -> Cost:
        """base + per_request * requests + per_row * rows."""
        return cls((0.0, 1.0), (base, base + per_row), per_request)

    def __call__(self, requests: int, rows: int) -> float:
        """Seconds of a step."""
        x, y = self.rows, self.seconds
        beyond = max(0.0, rows - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])
        return float(np.interp(rows, x, y)) + beyond + self.per_request * requests

    def slope(self, rows: float) -> float:
        """Seconds a further row costs."""
        piece = min(max(int(np.searchsorted(self.rows, rows, side="right")), 1), len(self.rows) - 1)
        return (self.seconds[piece] - self.seconds[piece - 1]) / (self.rows[piece] - self.rows[piece - 1])


COSTS = {
    # 7B on one H100: arXiv 2511.13841, figure 8, read off at these rows; from 450 rows on about 0.025 ms each.
    "paper": Cost(
        (0, 50, 100, 200, 400, 800, 1000, 1500, 1900),
        (7.4e-3, 9.2e-3, 10.8e-3, 13.2e-3, 18.5e-3, 30e-3, 35e-3, 46e-3, 55e-3),
    ),
    "gpu": Cost.line(20e-3, 0.05e-3, 0.05e-3),
    "cpu": Cost.line(60e-3, 2e-3),
}


class Arm(Protocol):
    """Decides what each step verifies."""

    packed: bool
    """Whether a step takes exactly the rows chosen, not the same number for every request."""

    def begin(self, rollout: int, epoch: Epoch) -> None:
        """A rollout gets a slot."""

    def choose(self, batch: Ints, done: Ints, waiting: int, path: Paths) -> WidthChoice:
        """The nodes to verify, of drafts of claimed `path` [n, NODES]."""

    def learn(self, path: Paths, choice: WidthChoice, kept: Kept, seconds: float) -> None:
        """What the step came to: which of the nodes verified were kept, [n, NODES], and the time measured."""

    def end(self, rollout: int, length: int) -> None:
        """A rollout is over."""


class PolicyArm:
    """The product's policy."""

    def __init__(self, arm: str, packed: bool = False, **settings: object) -> None:
        self.policy = Policy(PolicyConfig(arm=arm, packed=packed, max_width=NODES + 1, **settings))  # type: ignore[arg-type]
        self.packed = packed
        self._row: dict[int, int] = {}

    def begin(self, rollout: int, epoch: Epoch) -> None:
        """Open it."""
        self._row[rollout] = self.policy.open(int(epoch.problem[rollout]), epoch.cap)

    def choose(self, batch: Ints, done: Ints, waiting: int, path: Paths) -> WidthChoice:
        """Plan, and choose."""
        rows = np.array([self._row[which] for which in batch.tolist()])
        plan = self.policy.plan(rows, done.astype(np.int32), waiting)
        proposed = np.minimum((path >= np.maximum(plan.floor, 1e-6)[:, None]).sum(axis=1), plan.max_drafts)
        return self.policy.width(path, proposed.astype(np.int32), plan)

    def learn(self, path: Paths, choice: WidthChoice, kept: Kept, seconds: float) -> None:
        """Tell the policy."""
        drafted, emitted = int(choice.drafts.sum()), kept.sum(axis=1, dtype=np.int32) + np.int32(1)
        self.policy.observe_step(len(kept), choice.width, seconds, drafted, int(kept.sum()))
        self.policy.observe_drafts(path, choice.drafts, emitted, kept)

    def end(self, rollout: int, length: int) -> None:
        """Close it."""
        self.policy.close(self._row.pop(rollout), length, finished=True)


@dataclass
class EpochOutcome:
    """What an epoch took."""

    makespan: float = 0.0
    steps: int = 0
    tokens: int = 0
    request_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    live: list[tuple[float, int]] = field(default_factory=list)
    """Time, and rollouts not yet over from then on."""

    @property
    def tokens_per_step(self) -> float:
        """Tokens emitted per request and verify step."""
        return self.tokens / self.request_steps


@dataclass(frozen=True)
class Noise:
    """Of the times the arm is told."""

    spread: float = 0.05
    outliers: float = 0.02
    """Share of steps that take 2 to 10 times as long."""

    def __call__(self, seconds: float, rng: np.random.Generator) -> float:
        """The time measured."""
        measured = seconds * float(np.exp(self.spread * rng.standard_normal()))
        return measured * float(rng.uniform(2, 10)) if rng.random() < self.outliers else measured


def simulate(
    arm: Arm, epochs: list[Epoch], slots: int, cost: Cost, noise: Noise = Noise(), seed: int = 0
) -> list[EpochOutcome]:
    """Runs the epochs one after the other; the arm remembers."""
    rng = np.random.default_rng([seed, 11])
    return [_epoch(arm, epoch, slots, cost, noise, rng) for epoch in epochs]


def _epoch(arm: Arm, epoch: Epoch, slots: int, cost: Cost, noise: Noise, rng: np.random.Generator) -> EpochOutcome:
    outcome = EpochOutcome()
    done = np.zeros(len(epoch.lengths), np.int64)
    batch: Ints = np.zeros(0, np.int64)
    admitted, count = 0, len(done)
    while len(batch) or admitted < count:
        new = min(count - admitted, slots - len(batch))
        for which in range(admitted, admitted + new):
            arm.begin(which, epoch)
        batch = np.append(batch, np.arange(admitted, admitted + new))
        admitted += new
        at = epoch.begins[batch] + done[batch]
        path = epoch.path[at]
        choice = arm.choose(batch, done[batch], count - admitted, path)
        kept = (np.diff(epoch.accepted[at], axis=1) > 0) & (np.arange(NODES) < choice.drafts[:, None])
        accepted = kept.sum(axis=1)
        drafted = int(choice.drafts.sum())
        rows = len(batch) + drafted if arm.packed else len(batch) * choice.width
        seconds = cost(len(batch), rows)
        arm.learn(path, choice, kept, noise(seconds, rng))
        emitted = np.minimum(accepted + 1, epoch.lengths[batch] - done[batch])
        done[batch] += emitted
        outcome.makespan += seconds
        outcome.steps += 1
        outcome.tokens += int(emitted.sum())
        outcome.request_steps += len(batch)
        outcome.drafted += drafted
        outcome.accepted += int(accepted.sum())
        over = done[batch] >= epoch.lengths[batch]
        if over.any():
            for which in batch[over].tolist():
                arm.end(which, int(done[which]))
            batch = batch[~over]
            outcome.live.append((outcome.makespan, len(batch) + count - admitted))
    return outcome
