"""Discrete-event simulation of RL rollout epochs: a few slots, many rollouts, a known cost, a known acceptance.

Every rollout is a text whose token t a drafter would guess with probability ``chance[t]``; ``right[t]`` says
whether it would have. So all arms decode the same texts, and differ only in how they spend the time. The policy is
told noisy step times; the makespan adds up the true ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from sglang_das.policy import Policy, PolicyConfig

NODES = 16


@dataclass(frozen=True)
class Cost:
    """True step time in seconds: base + per_request * requests + per_row * rows."""

    base: float = 0.060
    per_request: float = 0.0
    per_row: float = 0.0015

    def __call__(self, requests: int, rows: int) -> float:
        return self.base + self.per_request * requests + self.per_row * rows


@dataclass(frozen=True)
class Workload:
    """Long-tailed rollouts of a few problems, with text that is predictable in stretches."""

    problems: int = 8
    samples: int = 8
    slots: int = 8
    median: float = 120.0
    spread_of_problems: float = 0.5
    spread: float = 0.5
    cap: int = 1024
    predictable: float = 0.35
    confident: float = 0.88
    unsure: float = 0.15
    stretch: float = 10.0
    overconfident: float = 1.0
    """Path probabilities are reported as chance ** (1 / overconfident) per token."""

    @lru_cache(maxsize=64)  # noqa: B019
    def epoch(self, seed: int, warmth: float = 1.0) -> Texts:
        rng = np.random.default_rng([seed, 7])
        centre = np.log(self.median) + self.spread_of_problems * np.random.default_rng(5).standard_normal(self.problems)
        problem = np.tile(np.arange(self.problems), self.samples)
        lengths = np.exp(centre[problem] + self.spread * rng.standard_normal(len(problem)))
        lengths = np.clip(lengths, 4, self.cap).astype(np.int64)
        total = int(lengths.max()) + NODES
        share = self.predictable * warmth
        switch = rng.random((len(problem), total)) < 1.0 / self.stretch
        states = rng.random((len(problem), total)) < share
        begin = np.maximum.accumulate(np.where(switch, np.arange(total), 0), axis=1)
        predictable = np.take_along_axis(states, begin, axis=1)
        centre_of = np.where(predictable, self.confident, self.unsure)
        chance = np.clip(centre_of + 0.1 * (rng.random((len(problem), total)) - 0.5), 0.0, 0.99)
        return Texts(problem, lengths, chance, rng.random((len(problem), total)) < chance)


@dataclass(frozen=True, eq=False)
class Texts:
    problem: np.ndarray
    lengths: np.ndarray
    chance: np.ndarray
    right: np.ndarray


@dataclass
class Outcome:
    makespans: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    tokens: int = 0
    row_steps: int = 0

    @property
    def warm(self) -> float:
        return sum(self.makespans[1:])

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.row_steps


def simulate(
    policy: Policy,
    workload: Workload,
    epochs: list[Texts],
    cost: Cost = Cost(),
    *,
    noise: float = 0.05,
    outliers: float = 0.02,
    floor: float = 0.0,
    knows_queue: bool = True,
    seed: int = 0,
) -> Outcome:
    outcome = Outcome()
    rng = np.random.default_rng([seed, 11])
    depth = np.arange(NODES)
    for texts in epochs:
        count = len(texts.lengths)
        done = np.zeros(count, np.int64)
        row_of = np.zeros(count, np.int64)
        live: list[int] = []
        waiting = list(range(count))
        clock, steps = 0.0, 0
        while live or waiting:
            while waiting and len(live) < workload.slots:
                which = waiting.pop(0)
                row_of[which] = policy.open(int(texts.problem[which]), workload.cap)
                live.append(which)
            batch = np.array(live)
            plan = policy.plan(row_of[batch], done[batch].astype(np.int32), len(waiting) if knows_queue else None)
            at = done[batch][:, None] + depth
            chance = np.take_along_axis(texts.chance[batch], at, axis=1)
            path = np.cumprod(chance ** (1.0 / workload.overconfident), axis=1).astype(np.float32)
            sizes = np.minimum((path >= np.maximum(plan.floor, floor)[:, None]).sum(1), plan.max_drafts).astype(
                np.int32
            )
            choice = policy.width(path, sizes, plan)
            right = np.take_along_axis(texts.right[batch], at, axis=1)
            agreed = np.minimum(np.cumprod(right, axis=1).sum(1), choice.drafts)
            rows = len(batch) + int(choice.drafts.sum()) if policy.config.packed else len(batch) * choice.width
            seconds = cost(len(batch), rows)
            clock += seconds
            steps += 1
            measured = seconds * np.exp(noise * rng.standard_normal())
            if rng.random() < outliers:
                measured *= rng.uniform(2, 10)
            policy.observe_step(len(batch), choice.width, float(measured), int(choice.drafts.sum()), int(agreed.sum()))
            policy.observe_drafts(path, choice.drafts, (agreed + 1).astype(np.int32))
            emitted = np.minimum(agreed + 1, texts.lengths[batch] - done[batch])
            outcome.tokens += int(emitted.sum())
            outcome.row_steps += len(batch)
            done[batch] += emitted
            for which in batch[done[batch] >= texts.lengths[batch]].tolist():
                policy.close(int(row_of[which]), int(done[which]), finished=True)
                live.remove(which)
        outcome.makespans.append(clock)
        outcome.steps.append(steps)
    return outcome


def run(arm: str, workload: Workload, epochs: int = 4, seed: int = 0, cost: Cost | None = None, **options) -> Outcome:
    """Epochs of a workload under one arm; the first epoch is cold: its text is half as predictable."""
    settings = options.pop("settings", {})
    texts = [workload.epoch(seed * 100 + epoch, warmth=1.0 if epoch else 0.5) for epoch in range(epochs)]
    policy = Policy(PolicyConfig(arm=arm, **settings))
    return simulate(policy, workload, texts, cost or Cost(), seed=seed, **options)
