"""What a play comes to: tokens per step, calibration, time, and acceptance by whatever it may hang on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_das import SuffixTree

from .accept import depths
from .play import Played
from .trace import Trace

Row = dict[str, Any]
Mask = NDArray[np.bool_]

SETTLED = 2000
"""Request steps after which `ece_settled` begins to count."""

_BINS = 20
"""Equal bins of path probability for the calibration error."""
_MATCH_EDGES = (0, 1, 2, 3, 5, 9, 17, 33)
_SHORT, _LONG = 0.2, 0.8
"""Quantiles of the rollouts' lengths below and from which they are short and long."""


@dataclass(frozen=True)
class Groups:
    """A way to sort request steps: a label for each group, and which one every step is in."""

    labels: list[str]
    of_step: Callable[[Played], NDArray[np.int64]]


@dataclass
class Figures:
    """Adds up plays of one trace."""

    trace: Trace
    cold: bool
    """Whether the first epoch counts, instead of all later ones."""
    plain: Played
    """The same trace without drafts."""
    groups: dict[str, Groups] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = {
            "by_epoch": self._by_epoch(),
            "by_match_length": self._by_match_length(),
            "by_position": self._by_position(),
            "by_length_class": self._by_length_class(),
        }

    @property
    def epochs(self) -> str:
        """Which epochs count."""
        if self.trace.learned_epochs:
            return "held out"
        return "first" if self.cold else "from the second on"

    def row(self, drafter: str, budget: int | str, floor: float, promises: bool, played: Played) -> Row:
        """The figures of one drafter with one budget; those that take probabilities are None if it has none."""
        steps, turns = self._counts(played.epoch, played)
        emitted = int(played.emitted[steps].sum())
        us = 1e6 * played.draft_seconds[turns] / played.requests[turns]
        makespan, plain = self._makespan(played), self._makespan(self.plain)
        return {
            "drafter": drafter,
            "budget": budget,
            "floor": floor,
            "tokens": emitted,
            "steps": int(steps.sum()),
            "nodes": int(played.sizes[steps].sum()),
            "accepted": int(played.kept[steps].sum()),
            "tokens_per_step": _ratio(emitted, int(steps.sum())),
            "ece": calibration_error(played, steps) if promises else None,
            "ece_settled": calibration_error(played, steps & _settled(played)) if promises else None,
            "ece_believed": calibration_error(_as_believed(played), steps) if promises else None,
            "draft_us_p50": float(np.percentile(us, 50)) if len(us) else 0.0,
            "draft_us_p99": float(np.percentile(us, 99)) if len(us) else 0.0,
            "makespan_s": makespan,
            "plain_makespan_s": plain,
            "makespan_ratio": _ratio(makespan, plain),
            "reliability": reliability(played, steps) if promises else None,
            "by_depth": by_depth(played, steps),
            **{name: self._grouped(name, played, steps) for name in self.groups},
        }

    def _counts(self, epoch_of_turn: NDArray[np.int64], played: Played) -> tuple[Mask, Mask]:
        """Which request steps and which turns count."""

        def counts(epochs: NDArray[np.int64]) -> Mask:
            return epochs == 0 if self.cold else epochs > 0

        return counts(self.trace.epochs[played.rollout]), counts(epoch_of_turn)

    def _makespan(self, played: Played) -> float:
        return float(played.step_seconds[self._counts(played.epoch, played)[1]].sum())

    def _grouped(self, name: str, played: Played, counting: Mask) -> list[Row]:
        """Tokens per step of every group that has any; by epoch, all epochs are there."""
        groups = self.groups[name]
        if name == "by_epoch":
            counting = np.ones_like(counting)
        group = groups.of_step(played)[counting]
        steps = np.bincount(group, minlength=len(groups.labels))
        tokens = np.bincount(group, played.emitted[counting], minlength=len(groups.labels))
        nodes = np.bincount(group, played.sizes[counting], minlength=len(groups.labels))
        return [
            {
                "group": label,
                "steps": int(steps[i]),
                "tokens": int(tokens[i]),
                "nodes": int(nodes[i]),
                "tokens_per_step": _ratio(tokens[i], steps[i]),
            }
            for i, label in enumerate(groups.labels)
            if steps[i]
        ]

    def _by_epoch(self) -> Groups:
        first, last = self.trace.played_epochs[0], self.trace.played_epochs[-1]
        labels = [str(epoch + 1) for epoch in range(first, last + 1)]
        return Groups(labels, lambda played: self.trace.epochs[played.rollout] - first)

    def _by_match_length(self) -> Groups:
        edges = np.array(_MATCH_EDGES)

        def of_step(played: Played) -> NDArray[np.int64]:
            matches = self._match_lengths[self.trace.offsets[played.rollout] + played.position - 1]
            group: NDArray[np.int64] = np.searchsorted(edges, matches, side="right") - 1
            return group

        return Groups(_labels(_MATCH_EDGES), of_step)

    def _by_position(self) -> Groups:
        longest = int(self.trace.lengths.max())
        edges = [1, *(2**power for power in range(4, 31) if 2**power < longest)]
        return Groups(
            _labels(edges), lambda played: np.searchsorted(np.array(edges), played.position, side="right") - 1
        )

    def _by_length_class(self) -> Groups:
        lengths = self.trace.lengths[self.trace.epochs >= self.trace.learned_epochs]
        short, long = np.quantile(lengths, [_SHORT, _LONG])
        labels = [f"short (< {short:.0f})", f"medium ({short:.0f} to {long:.0f})", f"long (≥ {long:.0f})"]
        of_rollout = (self.trace.lengths >= short).astype(np.int64) + (self.trace.lengths >= long)
        return Groups(labels, lambda played: of_rollout[played.rollout])

    @cached_property
    def _match_lengths(self) -> NDArray[np.int64]:
        """Longest suffix of a response up to each of its tokens that its problem's rollouts before it in the recording,
        or itself before, contain too, `[T]`; the beginning of a response counts as a token. It is the same for all
        drafters.
        """
        trace = self.trace
        trees = [SuffixTree() for _ in trace.names]
        matches = np.zeros(len(trace.tokens), np.int64)
        for rollout, (begin, end) in enumerate(zip(trace.offsets[:-1], trace.offsets[1:], strict=True)):
            sequence = trees[trace.problems[rollout]].sequence()
            for place in range(begin, end):
                sequence.append(trace.tokens[place : place + 1])
                matches[place] = sequence.match_length
            sequence.close()
        return matches


def calibration_error(played: Played, counting: Mask) -> float | None:
    """Expected calibration error of path probabilities: the mean over nodes of how far the mean probability of their
    bin lies off the share of it that was accepted. None without nodes.
    """
    bins = reliability(played, counting)
    nodes = sum(row["nodes"] for row in bins)
    if not nodes:
        return None
    return float(sum(row["nodes"] * abs(row["promised"] - row["kept"]) for row in bins) / nodes)


def reliability(played: Played, counting: Mask) -> list[Row]:
    """Of the nodes in each bin of path probability: how many, their mean probability, and the share accepted."""
    used = (np.arange(played.parents.shape[1]) < played.sizes[:, None]) & counting[:, None]
    values, kept = played.probabilities[used].astype(np.float64), played.kept[used]
    at = np.minimum((values * _BINS).astype(np.int64), _BINS - 1)
    nodes, promised, accepted = (np.bincount(at, weights, minlength=_BINS) for weights in (None, values, kept))
    return [
        {
            "from": i / _BINS,
            "to": (i + 1) / _BINS,
            "nodes": int(nodes[i]),
            "promised": promised[i] / nodes[i],
            "kept": accepted[i] / nodes[i],
        }
        for i in range(_BINS)
        if nodes[i]
    ]


def by_depth(played: Played, counting: Mask) -> list[Row]:
    """By depth in the draft: nodes drafted there, and in which share of the steps one of them was kept."""
    depth = depths(played.parents[counting], played.sizes[counting])
    drafted = np.bincount(depth[depth > 0])
    kept = np.bincount(depth[played.kept[counting]], minlength=len(drafted))
    steps = int(counting.sum())
    return [
        {"depth": d, "nodes": int(drafted[d]), "kept": int(kept[d]), "share_of_steps": kept[d] / steps}
        for d in range(1, len(drafted))
    ]


def _as_believed(played: Played) -> Played:
    """The play with the path probabilities that the width was chosen by."""
    return replace(played, probabilities=played.believed)


def _settled(played: Played) -> Mask:
    settled: Mask = np.arange(len(played.rollout)) >= SETTLED
    return settled


def _labels(edges: tuple[int, ...] | list[int]) -> list[str]:
    """Names of the ranges from each edge to the next."""
    ends = [*(edge - 1 for edge in edges[1:]), None]
    return [
        f"{first}+" if last is None else f"{first}" if first == last else f"{first}-{last}"
        for first, last in zip(edges, ends, strict=True)
    ]


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else 1.0
