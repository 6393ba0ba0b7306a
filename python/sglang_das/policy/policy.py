"""The policy as the engine sees it: one object, a few calls per verify step, arrays over the live batch.

    plan = policy.plan(rows, generated)                      # before drafting: how much may each request draft
    choice = policy.width(probabilities, sizes, plan)        # after drafting: how wide is the step
    ...                                                      # verify
    policy.observe_step(requests, choice.width, seconds, drafted, accepted)
    policy.observe_drafts(probabilities, choice.drafts, accept_lens)

Nothing here reads a clock, draws a random number or depends on hash order: the same calls give the same answers, so
tensor-parallel ranks that are told the same step times decide the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .calibration import Calibration
from .classes import LONG, MEDIUM, SHORT, LengthModel
from .config import PolicyConfig
from .latency import LatencyModel
from .switch import OffSwitch
from .width import Explorer, WidthChoice, expected_tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """What each live request may draft in the coming step."""

    length_class: npt.NDArray[np.int8]
    """SHORT, MEDIUM or LONG, int8 [n]."""
    max_drafts: npt.NDArray[np.int32]
    """Most nodes to draft, int32 [n]; 0 means do not draft."""
    floor: npt.NDArray[np.float32]
    """Path probability below which a node is not worth drafting, float32 [n]."""


class Policy:
    """Length-aware speculation policy for one engine."""

    def __init__(self, config: PolicyConfig | None = None) -> None:
        """Start without history; ``config`` defaults to ``PolicyConfig()``."""
        self.config = config = config or PolicyConfig()
        self.lengths = LengthModel(
            config.short_quantile, config.long_quantile, config.history, config.pool, config.max_problems
        )
        self.latency = LatencyModel(config.step_widths)
        self.calibration = Calibration()
        self._widths = np.array(config.step_widths, np.int64)
        self._explorer = Explorer(config.explore_every)
        self._switch = OffSwitch(config.retest_after)
        self._caps = np.full(3, max(config.step_widths) - 1, np.int32)
        if config.arm == "das-classes":
            self._caps[SHORT] = 0
            self._caps[MEDIUM] = min(config.medium_drafts, self._caps[LONG])
        self._steps = np.zeros(len(self._widths), np.int64)
        self._plans = self._plans_off = self._drafted = self._accepted = 0

    def open(self, problem: int, max_new_tokens: int, generated: int = 0) -> int:
        """A rollout is admitted; returns its row, to be given to :meth:`plan` and, once, to :meth:`close`.

        Args:
            problem: which prompt it answers; rollouts of one problem predict each other's length.
            max_new_tokens: where it will be cut.
            generated: tokens it has already, above 0 when it was resumed.

        Raises:
            ValueError: ``generated`` is negative or ``max_new_tokens`` is not above it.
        """
        if not 0 <= generated < max_new_tokens:
            raise ValueError(
                f"policy: generated is {generated} and max_new_tokens {max_new_tokens}; "
                "a rollout opens with 0 <= generated < max_new_tokens"
            )
        return self.lengths.open(problem, max_new_tokens, generated)

    def close(self, row: int, length: int, *, finished: bool) -> None:
        """A rollout is over at ``length`` tokens; the row may be given out again.

        ``finished=False`` (aborted, retracted) makes the length a lower bound. So does ``length >= max_new_tokens``: a
        rollout that was cut shows that its problem goes at least that far, and a row's own ``max_new_tokens`` bounds
        what is expected of it.

        Raises:
            ValueError: the row is not open, or ``length`` is negative.
        """
        self.lengths.require_open(np.array([row]))
        if length < 0:
            raise ValueError(f"policy: length is {length}, must be the number of tokens generated, 0 or more")
        self.lengths.close(row, length, finished)

    def plan(self, rows: npt.NDArray[np.int64], generated: npt.NDArray[np.int32]) -> Plan:
        """What each of the live requests may draft. Call once per step, before drafting.

        Args:
            rows: int64 [n], open rows.
            generated: int32 [n], tokens each has generated so far.

        Raises:
            ValueError: the arrays differ in shape or a row is not open.
        """
        if rows.ndim != 1 or rows.shape != generated.shape:
            raise ValueError(f"policy: rows has shape {rows.shape} and generated {generated.shape}; both must be [n]")
        self.lengths.require_open(rows)
        requests = len(rows)
        classes = self.lengths.classify(rows, generated)
        if not requests:
            return Plan(classes, np.zeros(0, np.int32), np.zeros(0, np.float32))
        # Classes are relative to the live batch: whoever is expected to last longest is what the batch waits for.
        classes = classes + np.int8(LONG - int(classes.max()))
        self._plans += 1
        if self.config.arm == "das-classes" and not self._switch.is_on(requests):
            self._plans_off += 1
            max_drafts = np.zeros(requests, np.int32)
        else:
            left = np.maximum(self.lengths.remaining(rows) - 1, 0)  # the step's own token needs no draft
            max_drafts = np.minimum(self._caps[classes], left).astype(np.int32)
        return Plan(classes, max_drafts, np.full(requests, self._floor(requests), np.float32))

    def width(self, probabilities: npt.NDArray[np.float32], sizes: npt.NDArray[np.int32], plan: Plan) -> WidthChoice:
        """Width of the step, and how many of its drafted nodes each request verifies.

        Args:
            probabilities: float32 [n, K], path probabilities of each request's nodes, best first.
            sizes: int32 [n], how many of the K each request has.
            plan: of this step.

        Raises:
            ValueError: the shapes do not match the plan's n.
        """
        requests = len(plan.max_drafts)
        if probabilities.ndim != 2 or len(probabilities) != requests or sizes.shape != (requests,):
            raise ValueError(
                f"policy: probabilities has shape {probabilities.shape} and sizes {sizes.shape}; "
                f"the plan is for {requests} requests, so they must be [{requests}, K] and [{requests}]"
            )
        usable = np.minimum(np.minimum(sizes, plan.max_drafts), probabilities.shape[1]).astype(np.int32, copy=False)
        longest = int(usable.max(initial=0))
        if not longest:
            seconds = float(self.latency.seconds(requests)[0]) if requests else 0.0
            return WidthChoice(1, np.zeros(requests, np.int32), float(requests), seconds, False)
        widest = min(int(np.searchsorted(self._widths, longest + 1)), len(self._widths) - 1)
        times = self.latency.seconds(requests)
        corrected = self.calibration(probabilities[:, :longest])
        tokens = expected_tokens(corrected, usable)
        used = np.minimum(self._widths[: widest + 1] - 1, longest)
        best, explored = widest, False
        if self.config.arm == "das-classes":
            rate = tokens[used] / times[: widest + 1]
            best = int(rate.argmax())
            if rate[best] <= rate[0] * (1.0 + self.config.margin):
                best = 0
            tried = self._explorer.neighbour(best, widest, requests, self.latency.samples(requests))
            best, explored = tried, tried != best
        width = int(self._widths[best])
        drafts = np.minimum(usable, np.int32(width - 1))
        return WidthChoice(width, drafts, float(tokens[used[best]]), float(times[best]), explored)

    def observe_step(self, requests: int, width: int, seconds: float, drafted: int, accepted: int) -> None:
        """The engine's own measurement of a verify step.

        Args:
            requests: live requests in it.
            width: rows each of them took.
            seconds: time of the verify step alone.
            drafted: drafted nodes verified, over all requests.
            accepted: how many of those agreed.

        Raises:
            ValueError: a value is impossible, or the width is none of the configured ones.
        """
        column = int(np.searchsorted(self._widths, width))
        if column == len(self._widths) or self._widths[column] != width:
            raise ValueError(f"policy: width is {width}, must be one of {self._widths.tolist()}")
        if requests < 1 or not 0 <= accepted <= drafted:
            raise ValueError(
                f"policy: requests is {requests}, drafted {drafted}, accepted {accepted}; "
                "must be requests >= 1 and 0 <= accepted <= drafted"
            )
        if not (math.isfinite(seconds) and seconds > 0.0):
            raise ValueError(f"policy: seconds is {seconds}, must be a positive time")
        self.latency.observe(requests, width, seconds)
        self._steps[column] += 1
        self._drafted += drafted
        self._accepted += accepted
        if width > 1:
            times = self.latency.seconds(requests)
            plain = float(times[0]) * (1.0 + accepted / requests)
            self._switch.observe(requests, plain, float(times[column]))

    def observe_drafts(
        self,
        probabilities: npt.NDArray[np.float32],
        drafts: npt.NDArray[np.int32],
        accept_lens: npt.NDArray[np.int32],
    ) -> None:
        """What became of the drafts of a verify step; teaches the calibration.

        Args:
            probabilities: float32 [n, K] as given to :meth:`width`.
            drafts: int32 [n], nodes of each request that were verified (a chain: node j hangs on node j - 1).
            accept_lens: int32 [n], tokens emitted: accepted drafts + 1.

        Raises:
            ValueError: the shapes do not match.
        """
        requests = len(probabilities)
        if probabilities.ndim != 2 or drafts.shape != (requests,) or accept_lens.shape != (requests,):
            raise ValueError(
                f"policy: probabilities has shape {probabilities.shape}, drafts {drafts.shape}, "
                f"accept_lens {accept_lens.shape}; must be [n, K], [n] and [n]"
            )
        self.calibration.observe(probabilities, drafts, accept_lens)

    def describe(self) -> dict[str, object]:
        """State for logs and server info, in plain builtins."""
        base, per_request, per_row = self.latency.coefficients
        short_below, long_from = self.lengths.thresholds
        return {
            "arm": self.config.arm,
            "steps_by_width": {int(w): int(n) for w, n in zip(self._widths, self._steps, strict=True) if n},
            "drafted": self._drafted,
            "accepted": self._accepted,
            "calibration": self.calibration.ratio,
            "seconds": {"base": base, "per_request": per_request, "per_row": per_row},
            "short_below": short_below,
            "long_from": long_from,
            "problems": self.lengths.problems,
            "rollouts": self.lengths.rollouts,
            "measured_gain": self._switch.gain,
            "times_off": self._switch.rests,
            "steps_off": self._plans_off,
        }

    def _floor(self, requests: int) -> float:
        """Half of what a node must bring: a width also carries nodes that pay less than their share."""
        if self.config.arm != "das-classes":
            return 0.0
        share = self.latency.coefficients[2] * requests / float(self.latency.seconds(requests)[0])
        return max(self.config.min_floor, 0.5 * share)
