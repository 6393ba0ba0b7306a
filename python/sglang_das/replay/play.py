"""The steps of a server over recorded rollouts: a few slots, many requests, a verify step for all that run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.drafts import Drafts

from .accept import accept
from .control import Control, Latency
from .drafters import Drafter, Turn
from .trace import Trace

Tick = Callable[[int], None]
"""Is told how many tokens have been played since it was last told."""
Clock = Callable[[], float]
"""What times the drafter, in seconds."""


@dataclass(frozen=True)
class Played:
    """What happened: one entry per turn (t), per request and turn (r), per drafted node (`[r, nodes]`)."""

    epoch: NDArray[np.int64]
    """Epoch of each turn, `[t]`."""
    requests: NDArray[np.int64]
    """Running requests, `[t]`."""
    draft_seconds: NDArray[np.float64]
    """What the drafter's step took, `[t]`."""
    step_seconds: NDArray[np.float64]
    """What the verify step takes by the latency model, `[t]`."""
    rollout: NDArray[np.int64]
    """Rollout of the trace, `[r]`."""
    position: NDArray[np.int64]
    """Tokens it had generated before the step, `[r]`."""
    emitted: NDArray[np.int64]
    """Tokens of the step, `[r]`."""
    sizes: NDArray[np.int32]
    """Nodes verified, `[r]`."""
    parents: NDArray[np.int16]
    """Node above each, -1 for the root, `[r, nodes]`."""
    probabilities: NDArray[np.float32]
    """Path probabilities, 0 from drafters that have none, `[r, nodes]`."""
    believed: NDArray[np.float32]
    """The path probabilities as whoever chose the width took them to be, `[r, nodes]`."""
    kept: NDArray[np.bool_]
    """Which nodes were accepted, `[r, nodes]`."""

    def save(self, path: Path) -> None:
        """Writes it to an npz file."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def load(path: Path) -> Played:
        """Reads what `save` wrote."""
        with np.load(path) as file:
            return Played(**dict(file))

    @staticmethod
    def join(parts: Sequence[Played], rollouts: Sequence[NDArray[np.int64]]) -> Played:
        """Several plays as one; `rollouts[i]` are the joined trace's numbers of the rollouts of part i."""
        joined = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Played)}
        joined["rollout"] = np.concatenate([names[part.rollout] for part, names in zip(parts, rollouts, strict=True)])
        return Played(**joined)


class _Log:
    """Collects turns, nodes padded to the full width."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._turns: list[tuple[int, int, float, float]] = []
        self._rows: dict[str, list[NDArray[Any]]] = {}
        none, no_nodes = np.zeros(0, np.int64), Drafts.none(0)  # so that a play without a step has arrays too
        self.rows(none, none, none, no_nodes, no_nodes.probabilities, np.zeros((0, 0), np.bool_))

    def turn(self, epoch: int, requests: int, draft_seconds: float, step_seconds: float) -> None:
        self._turns.append((epoch, requests, draft_seconds, step_seconds))

    def rows(
        self,
        rollout: NDArray[np.int64],
        position: NDArray[np.int64],
        emitted: NDArray[np.int64],
        drafts: Drafts,
        believed: NDArray[np.float32],
        kept: NDArray[np.bool_],
    ) -> None:
        columns: dict[str, NDArray[Any]] = {
            "rollout": rollout,
            "position": position,
            "emitted": emitted,
            "sizes": drafts.sizes,
            "parents": drafts.parents,
            "probabilities": drafts.probabilities,
            "believed": believed,
            "kept": kept,
        }
        for name, values in columns.items():
            self._rows.setdefault(name, []).append(values)

    def played(self) -> Played:
        epoch, requests, draft_seconds, step_seconds = np.array(self._turns, np.float64).reshape(-1, 4).T
        columns: dict[str, Any] = {name: self._joined(values) for name, values in self._rows.items()}
        columns["parents"] = columns["parents"].astype(np.int16)
        return Played(
            epoch=epoch.astype(np.int64),
            requests=requests.astype(np.int64),
            draft_seconds=draft_seconds,
            step_seconds=step_seconds,
            **columns,
        )

    def _joined(self, values: list[NDArray[Any]]) -> NDArray[Any]:
        if values[0].ndim == 1:
            return np.concatenate(values)
        joined = np.zeros((sum(map(len, values)), self._width), values[0].dtype)
        at = 0
        for part in values:
            joined[at : at + len(part), : part.shape[1]] = part
            at += len(part)
        return joined


def play(
    trace: Trace,
    drafter: Drafter,
    control: Control,
    slots: int,
    latency: Latency,
    tick: Tick = lambda tokens: None,
    clock: Clock = time.perf_counter,
) -> Played:
    """Plays the epochs of a trace in order; in each, `slots` requests run at once and the others wait their turn.

    A request's first token comes from its prefill, as in a server; every other one from a verify step.
    """
    for epoch in range(trace.learned_epochs):
        drafter.learn(trace.of_epoch(epoch))
        drafter.advance()
    log = _Log(control.width)
    for epoch in trace.played_epochs:
        server = _Server(trace, epoch, drafter, control, latency, log, clock)
        while server.admit(slots, tick):
            tick(server.step())
            server.retire()
        drafter.advance()
    return log.played()


class _Server:
    """The requests of an epoch."""

    def __init__(
        self,
        trace: Trace,
        epoch: int,
        drafter: Drafter,
        control: Control,
        latency: Latency,
        log: _Log,
        clock: Clock,
    ) -> None:
        self._trace, self._epoch, self._drafter, self._control = trace, epoch, drafter, control
        self._latency, self._log, self._clock = latency, log, clock
        self._waiting = trace.of_epoch(epoch)[::-1]
        self._running = np.zeros(0, np.int64)
        """Rollouts of the running requests, `[n]`."""
        self._known = np.zeros(0, np.int64)
        """Tokens of each that the drafter knows, `[n]`."""
        self._done = np.zeros(0, np.int64)
        """Tokens of each that are emitted, `[n]`."""

    def admit(self, slots: int, tick: Tick) -> bool:
        """Fills free slots from the queue, each request with the token of its prefill; whether any runs."""
        started: list[int] = []
        while self._waiting and len(self._running) + len(started) < slots:
            rollout = self._waiting.pop()
            tick(1)
            if self._trace.lengths[rollout] > 1:  # otherwise its prefill is all there is
                started.append(rollout)
                self._drafter.open(rollout)
                self._control.open(rollout, int(self._trace.problems[rollout]))
        self._running = np.append(self._running, np.array(started, np.int64))
        self._known = np.append(self._known, np.zeros(len(started), np.int64))
        self._done = np.append(self._done, np.ones(len(started), np.int64))
        return bool(len(self._running))

    def step(self) -> int:
        """A verify step of all that run; returns how many tokens they emitted."""
        trace, running, done = self._trace, self._running, self._done
        max_nodes, floors = self._control.plan(running, done, len(self._waiting))
        turn = Turn(running, self._known, done, max_nodes, floors)
        start = self._clock()
        drafts = self._drafter.step(turn)
        draft_seconds = self._clock() - start
        drafts = self._control.choose(drafts)
        kept = accept(drafts, trace.future(running, done, drafts.width - 1))
        emitted: NDArray[np.int64] = np.minimum(kept.sum(axis=1) + 1, trace.lengths[running] - done)
        step_seconds = self._latency(drafts)
        believed = self._control.believed(drafts)
        self._control.observe(drafts, emitted, kept, step_seconds)
        self._log.turn(self._epoch, len(running), draft_seconds, step_seconds)
        self._log.rows(running, done, emitted, drafts, believed, kept)
        self._known, self._done = done, done + emitted
        return int(emitted.sum())

    def retire(self) -> None:
        """Ends the requests that have emitted all their tokens."""
        over = self._done == self._trace.lengths[self._running]
        for rollout, begin in zip(self._running[over].tolist(), self._known[over].tolist(), strict=True):
            self._drafter.close(rollout, begin)
            self._control.close(rollout, int(self._trace.lengths[rollout]))
        self._running, self._known, self._done = self._running[~over], self._known[~over], self._done[~over]
