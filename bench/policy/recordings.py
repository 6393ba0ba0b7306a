"""Epochs to simulate made of recorded rollouts, drafted for by the product's drafter with all it knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sglang_das.engine.drafts import Drafts
from sglang_das.replay.accept import accept
from sglang_das.replay.drafters import OURS, Das, Turn
from sglang_das.replay.read import read
from sglang_das.replay.trace import Trace

from .workloads import NODES, Accepted, Epoch, Ints, Paths

_FLOOR = 0.01  # least path probability drafted: below what any policy takes


def recorded(files: Sequence[Path], slots: int) -> list[Epoch]:
    """Epochs of all files together, their rollouts in turn; problems of different files are different ones.

    A rollout is drafted for at each of its tokens by the history of the epochs before, its siblings that ran before it
    or beside it, and itself. So many ran beside it as the file has a share of `slots`. As in a server, its first token
    comes from the prefill.
    """
    traces = [read([file]) for file in files]
    share = max(1, slots // len(traces))
    return [_join(list(of_epoch)) for of_epoch in zip(*(_epochs(trace, share) for trace in traces), strict=True)]


def _epochs(trace: Trace, slots: int) -> Iterator[Epoch]:
    drafter = Das(trace, OURS["das"], NODES)
    for epoch in trace.played_epochs:
        yield _epoch(trace, epoch, drafter, slots)
        drafter.advance()


def _epoch(trace: Trace, epoch: int, drafter: Das, slots: int) -> Epoch:
    """Every running rollout moves on by one token at each step, and is drafted for there."""
    rollouts = np.array([rollout for rollout in trace.of_epoch(epoch) if trace.lengths[rollout] > 1], np.int64)
    lengths = trace.lengths[rollouts] - 1
    begins = np.cumsum(lengths) - lengths
    path = np.zeros((int(lengths.sum()), NODES), np.float32)
    accepted = np.zeros((len(path), NODES + 1), np.int8)
    running, done, admitted = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    while len(running) or admitted < len(rollouts):
        new = np.arange(admitted, min(len(rollouts), admitted + slots - len(running)))
        for rollout in rollouts[new].tolist():
            drafter.open(rollout)
        running, done, admitted = np.append(running, new), np.append(done, np.zeros_like(new)), admitted + len(new)
        drafts = _draft(drafter, rollouts[running], done)
        at, nodes = begins[running] + done, drafts.width - 1
        path[at, :nodes] = np.where(np.arange(nodes) < drafts.sizes[:, None], drafts.probabilities, 0.0)
        kept = accept(drafts, trace.future(rollouts[running], done + 1, nodes))
        accepted[at, 1:] = _counts(kept)
        done += 1
        over = done == lengths[running]
        for which in running[over].tolist():
            drafter.close(int(rollouts[which]), int(lengths[which]))
        running, done = running[~over], done[~over]
    return Epoch(trace.problems[rollouts], lengths, int(trace.lengths.max()), path, accepted, _worth(path, accepted))


def _draft(drafter: Das, rollouts: Ints, done: Ints) -> Drafts:
    n = len(rollouts)
    return drafter.step(Turn(rollouts, done, done + 1, np.full(n, NODES, np.int32), np.full(n, _FLOOR, np.float32)))


def _counts(kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    """How many of the first 1, 2, ... NODES nodes were kept."""
    all_nodes = np.zeros((len(kept), NODES), np.int8)
    all_nodes[:, : kept.shape[1]] = kept
    return np.cumsum(all_nodes, axis=1, dtype=np.int8)


def _worth(path: Paths, accepted: Accepted) -> Paths:
    """Path probabilities as the frequencies with which nodes of about that probability agreed, by hindsight."""
    right = np.diff(accepted, axis=1) > 0
    edges = np.linspace(0.0, 1.0, 33)
    at = np.digitize(path, edges[1:-1])
    drafted = path > 0.0
    hits = np.bincount(at[drafted], right[drafted], minlength=32)
    worth = np.maximum.accumulate(hits / np.maximum(np.bincount(at[drafted], minlength=32), 1))
    return np.where(drafted, worth[at], 0.0).astype(np.float32)


def _join(parts: list[Epoch]) -> Epoch:
    """One epoch of all, a rollout of each in turn."""
    problems = np.concatenate([part.problem + 10**6 * file for file, part in enumerate(parts)])
    lengths = np.concatenate([part.lengths for part in parts])
    path, accepted, worth = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("path", "accepted", "worth")
    )
    begins = np.cumsum(lengths) - lengths
    turn = np.argsort(np.concatenate([np.arange(len(part.lengths)) for part in parts]), kind="stable")
    tokens = np.concatenate([np.arange(begins[i], begins[i] + lengths[i]) for i in turn])
    cap = max(part.cap for part in parts)
    return Epoch(problems[turn], lengths[turn], cap, path[tokens], accepted[tokens], worth[tokens])
