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
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .acceptance import AcceptanceModel
from .budget import StepBudgets
from .calibration import Calibration
from .classes import LONG, MEDIUM, SHORT, LengthModel
from .config import PolicyConfig
from .explain import Reasons, budget, sentence
from .latency import LatencyModel
from .pace import Pace
from .profile import measured_steps
from .switch import OffSwitch
from .tail import Tail
from .width import WidthChoice, WidthChooser


@dataclass(frozen=True, slots=True)
class Plan:
    """What each live request may draft in the coming step."""

    length_class: npt.NDArray[np.int8]
    """SHORT, MEDIUM or LONG, int8 [n]."""
    max_drafts: npt.NDArray[np.int32]
    """Most nodes to draft, int32 [n]; 0 means do not draft."""
    floor: npt.NDArray[np.float32]
    """Path probability below which a node is not worth drafting, float32 [n]."""
    weights: npt.NDArray[np.float64] | None
    """What a token of each request is worth, float64 [n] of mean one; None where all are worth the same."""
    rows: npt.NDArray[np.int64]
    """The requests planned for, int64 [n]."""
    others: int = 0
    """Further requests in the batch: each emits a token a step, and takes as many rows as any."""

    @property
    def batch(self) -> int:
        """Requests in the batch."""
        return len(self.rows) + self.others

    def within(self, room: npt.NDArray[np.int32]) -> Plan:
        """The same where each request may draft at most ``room`` nodes, int32 [n]."""
        return replace(self, max_drafts=np.minimum(self.max_drafts, room).astype(np.int32))


class Policy:
    """Length-aware speculation policy for one engine."""

    def __init__(self, config: PolicyConfig | None = None) -> None:
        """Start without history; ``config`` defaults to ``PolicyConfig()``."""
        self.config = config = config or PolicyConfig()
        self.lengths = LengthModel(
            config.short_quantile, config.long_quantile, config.history, config.pool, config.max_problems
        )
        self.latency = LatencyModel(config.step_widths)
        if config.profile:
            self.latency.learn(measured_steps(config.profile))
        self.calibration = Calibration()
        self._adaptive = config.arm.startswith("das")
        self._chooser = WidthChooser(config.step_widths, self.latency, config.explore_every, config.margin)
        self._tail = Tail(self.lengths)
        self._pace = Pace()
        self._switch = OffSwitch(config.retest_after)
        self._acceptance: AcceptanceModel | None = None
        self._budgets: StepBudgets | None = None
        if config.arm in ("das-budget", "das-printed"):
            self._acceptance = AcceptanceModel(max(config.step_widths) - 1, config.max_problems)
            printed = config.arm == "das-printed"
            self._budgets = StepBudgets(self.lengths, self.latency, self._acceptance, printed)
        self._caps = np.full(3, max(config.step_widths) - 1, np.int32)
        if config.arm == "das-classes":
            self._caps[SHORT] = 0
            self._caps[MEDIUM] = min(config.medium_drafts, self._caps[LONG])
        self._last: tuple[Plan, WidthChoice] | None = None
        self._open = 0
        self._steps: dict[int, int] = {}
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
        row = self.lengths.open(problem, max_new_tokens, generated)
        self._open += 1
        self._pace.open(row)
        self._tail.open(row)
        if self._acceptance and self._budgets:
            self._acceptance.open(row, problem)
            self._budgets.open(row)
        return row

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
        self._open -= 1
        if not self._open:
            self._tail.batch_ended()

    def plan(
        self,
        rows: npt.NDArray[np.int64],
        generated: npt.NDArray[np.int32],
        waiting: int | None = None,
        others: int = 0,
    ) -> Plan:
        """What each of the live requests may draft. Call once per step, before drafting.

        Args:
            rows: int64 [n], open rows.
            generated: int32 [n], tokens each has generated so far.
            waiting: rollouts in the queue; if not known, inferred from slots that stay free.
            others: requests of the batch that are nobody's rollout and are never drafted for.

        Raises:
            ValueError: the arrays differ in shape, a row is not open, or ``others`` is negative.
        """
        if rows.ndim != 1 or rows.shape != generated.shape:
            raise ValueError(f"policy: rows has shape {rows.shape} and generated {generated.shape}; both must be [n]")
        if others < 0:
            raise ValueError(f"policy: others is {others}, must be the number of other requests, 0 or more")
        self.lengths.require_open(rows)
        requests = len(rows)
        classes = self.lengths.classify(rows, generated)
        if not requests:
            return Plan(classes, np.zeros(0, np.int32), np.zeros(0, np.float32), None, rows, others)
        # Classes are relative to the live batch: whoever is expected to last longest is what the batch waits for.
        classes = classes + np.int8(LONG - int(classes.max()))
        self._plans += 1
        if self._adaptive and not self._switch.is_on(requests + others):
            self._plans_off += 1
            max_drafts = np.zeros(requests, np.int32)
        else:
            left = np.maximum(self.lengths.left(rows) - 1, 0)  # the step's own token needs no draft
            max_drafts = np.minimum(self._caps[classes], left).astype(np.int32)
            if self._budgets:
                max_drafts = np.minimum(max_drafts, self._budgets.drafts(rows))
        weights = self._weights(rows, waiting) if self.config.arm == "das" else None
        return Plan(classes, max_drafts, self._floors(requests + others, requests, weights), weights, rows, others)

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
        if self._acceptance and requests:
            self._acceptance.observe(plan.rows, self.calibration(probabilities), sizes, plan.max_drafts)
        choice = self._choose(probabilities, usable, plan)
        if requests:
            self._last = plan, choice
        return choice

    def _choose(self, probabilities: npt.NDArray[np.float32], usable: npt.NDArray[np.int32], plan: Plan) -> WidthChoice:
        requests = len(usable)
        if self.config.arm == "sweep" and requests:
            return self._sweep(usable, plan)
        if not usable.any():
            seconds = float(self.latency.seconds(plan.batch)[0]) if requests else 0.0
            return WidthChoice(1, np.zeros(requests, np.int32), float(plan.batch), seconds, False)
        corrected = self.calibration(probabilities)
        if not self._adaptive:
            return self._chooser.widest(corrected, usable, plan.others)
        choose = self._chooser.packed if self.config.packed else self._chooser.uniform
        return choose(corrected, usable, plan.weights, plan.others)

    def _sweep(self, usable: npt.NDArray[np.int32], plan: Plan) -> WidthChoice:
        widths = self.config.step_widths
        at = self._plans % len(widths)
        drafts = np.minimum(usable, np.int32(widths[at] - 1))
        return WidthChoice(widths[at], drafts, float(plan.batch), float(self.latency.seconds(plan.batch)[at]), True)

    def observe_step(self, requests: int, width: int, seconds: float, drafted: int, accepted: int) -> None:
        """The engine's own measurement of a verify step.

        Args:
            requests: requests in it, those that are never drafted for included.
            width: rows each of them took.
            seconds: time of the verify step alone.
            drafted: drafted nodes verified, over all requests.
            accepted: how many of those agreed.

        Raises:
            ValueError: a value is impossible, or the width is none of the configured ones.
        """
        if not self.config.packed and width not in self.config.step_widths:
            raise ValueError(f"policy: width is {width}, must be one of {self.config.step_widths}")
        if requests < 1 or not 0 <= accepted <= drafted:
            raise ValueError(
                f"policy: requests is {requests}, drafted {drafted}, accepted {accepted}; "
                "must be requests >= 1 and 0 <= accepted <= drafted"
            )
        if not (math.isfinite(seconds) and seconds > 0.0):
            raise ValueError(f"policy: seconds is {seconds}, must be a positive time")
        rows = requests + drafted if self.config.packed else requests * width
        self.latency.observe(requests, rows, seconds)
        self._steps[width] = self._steps.get(width, 0) + 1
        self._drafted += drafted
        self._accepted += accepted
        if width > 1:
            plain, speculative = self.latency.seconds_of_rows(requests, [requests, rows]).tolist()
            self._switch.observe(requests, plain * (1.0 + accepted / requests), speculative)

    def observe_drafts(
        self,
        probabilities: npt.NDArray[np.float32],
        drafts: npt.NDArray[np.int32],
        accept_lens: npt.NDArray[np.int32],
        accepted: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """What became of the drafts of a verify step; teaches the calibration.

        Args:
            probabilities: float32 [n, K] as given to :meth:`width`.
            drafts: int32 [n], nodes of each request that were verified.
            accept_lens: int32 [n], tokens emitted: accepted drafts + 1.
            accepted: bool [n, K], the nodes that agreed; by default drafts are chains, whose first nodes did.

        Raises:
            ValueError: the shapes do not match.
        """
        requests = len(probabilities)
        if probabilities.ndim != 2 or drafts.shape != (requests,) or accept_lens.shape != (requests,):
            raise ValueError(
                f"policy: probabilities has shape {probabilities.shape}, drafts {drafts.shape}, "
                f"accept_lens {accept_lens.shape}; must be [n, K], [n] and [n]"
            )
        if accepted is None:
            accepted = np.arange(probabilities.shape[1]) < accept_lens[:, None] - 1
        elif accepted.shape != probabilities.shape:
            raise ValueError(f"policy: accepted has shape {accepted.shape}, must be {probabilities.shape}")
        self.calibration.observe(probabilities, drafts, accepted)
        if self._last is not None and len(self._last[0].rows) == requests:
            self._pace.observe(self._last[0].rows, accept_lens)

    def explain(self, row: int, *, brief: bool = False) -> str:
        """Why a live request had the budget it had in the last step, in a sentence.

        ``brief`` leaves out what the step as a whole verified.

        Raises:
            ValueError: the row was not part of the last step.
        """
        rows = self._last[0].rows if self._last else np.zeros(0, np.int64)
        found = np.flatnonzero(rows == row)
        if self._last is None or not len(found):
            raise ValueError(f"policy: row {row} was not in the last step; ask for one of {rows.tolist()}")
        (plan, choice), at = self._last, int(found[0])
        requests = plan.batch
        say = budget if brief else sentence
        return say(
            Reasons(
                arm=self.config.arm,
                length_class=int(plan.length_class[at]),
                expected=float(self.lengths.expected(rows[at : at + 1])[0]),
                left=int(self.lengths.left(rows[at : at + 1])[0]),
                max_drafts=int(plan.max_drafts[at]),
                drafts=int(choice.drafts[at]),
                weight=None if plan.weights is None else float(plan.weights[at]),
                floor=float(plan.floor[at]),
                rest=self._switch.rest_left(requests) if self._adaptive and not plan.max_drafts.any() else 0,
                tokens=choice.tokens,
                seconds=choice.seconds,
                plain_tokens=requests,
                plain_seconds=float(self.latency.seconds(requests)[0]),
            )
        )

    def describe(self) -> dict[str, object]:
        """State for logs and server info, in plain builtins."""
        base, per_request, per_row = self.latency.coefficients
        short_below, long_from = self.lengths.thresholds
        return {
            "arm": self.config.arm,
            "widths": list(self.config.step_widths),
            "steps_by_width": dict(sorted(self._steps.items())),
            "drafted": self._drafted,
            "accepted": self._accepted,
            "calibration": self.calibration.ratio,
            "seconds": {"base": base, "per_request": per_request, "per_row": per_row},
            "seconds_error": self.latency.relative_error,
            "short_below": short_below,
            "long_from": long_from,
            "problems": self.lengths.problems,
            "rollouts": self.lengths.rollouts,
            "measured_gain": self._switch.gain,
            "times_off": self._switch.rests,
            "steps_off": self._plans_off,
            "why": self.why(),
        } | ({"measured": self.latency.table()} if self.config.arm == "sweep" else {})

    def why(self) -> str | None:
        """Why the request that the batch was expected to wait for longest had its budget; None before any step."""
        if self._last is None:
            return None
        rows = self._last[0].rows
        return self.explain(int(rows[int(self.lengths.expected(rows).argmax())]))

    def _weights(self, rows: npt.NDArray[np.int64], waiting: int | None) -> npt.NDArray[np.float64]:
        """Seconds a step of each request costs the makespan, scaled to mean one.

        A step less for request i saves c_base if i is the last to finish, and its own c_req + c_tok in any case; pace
        tokens save a step.
        """
        base, per_request, per_row = self.latency.coefficients
        pace = self._pace(rows)
        worth = (base * self._tail.shares(rows, waiting, pace) + per_request + per_row) / pace
        weights: npt.NDArray[np.float64] = worth / worth.mean()
        return weights

    def _floors(self, batch: int, requests: int, weights: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float32]:
        """Half of what a node must bring: a uniform width also carries nodes that pay less than their share."""
        if not self._adaptive:
            return np.zeros(requests, np.float32)
        share = 0.5 * self.latency.coefficients[2] * batch / float(self.latency.seconds(batch)[0])
        if weights is None or not self.config.packed:
            return np.full(requests, max(self.config.min_floor, share), np.float32)
        return np.clip(share / weights, self.config.min_floor, 0.5).astype(np.float32)
