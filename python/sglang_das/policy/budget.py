"""Budgets: how many drafts each rollout should be given over its remaining tokens for the least makespan.

With N forward passes to go and remaining lengths l_i, arXiv 2511.13841 minimises

    J = c_base N + c_tok sum_i p_i   subject to   l_i - A_i(p_i) <= N,   A_i(p) = k_i l_i (1 - exp(-alpha_i p / l_i)).

The constraint is tight for whoever is drafted at all. Solving it for p_i, and dJ/dN = 0, gives for N > (1 - k_i)
l_i

    (7')   p_i = -(l_i / alpha_i) ln(1 - (1 - N / l_i) / k_i)      if l_i > N, else 0
    (9')   c_base = c_tok sum_{i: l_i > N} 1 / (alpha_i (k_i - 1 + N / l_i)).

The paper prints (7) as -(l / alpha) ln(1 - k (1 - N / l)) and (9) with k / (alpha (1 - k + k N / l)). Those agree
with the constraint only for k = 1 and give long rollouts too little; they are here to be compared with. The right
side of (9') falls as N grows, so its sign is searched; it jumps where N passes a length, and at an end of the
interval no N solves it and the end is best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .acceptance import AcceptanceModel
from .classes import LengthModel
from .latency import LatencyModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_STALE_AFTER = 8  # steps
_HALVINGS = 13  # of the interval in which N is searched


@dataclass(frozen=True, slots=True)
class Budget:
    """The least J found."""

    passes: float
    """N: forward passes until the last rollout ends."""
    proposals: Floats
    """p_i: drafts to propose to each over its remaining tokens, float64 [n]."""

    @property
    def per_step(self) -> Floats:
        """Drafts of each in every pass: float64 [n]."""
        return self.proposals / max(self.passes, 1.0)


def solve(lengths: Floats, alpha: Floats, k: Floats, base: float, per_row: float, *, printed: bool = False) -> Budget:
    """Optimal budgets of a batch, by bisection on the sign of (9').

    Args:
        lengths: remaining tokens l_i, float64 [n], positive.
        alpha: acceptance efficiencies, float64 [n], positive.
        k: largest share of each length that drafts can supply, float64 [n], in (0, 1].
        base: c_base, seconds of a forward pass.
        per_row: c_tok, seconds of a drafted token in it.
        printed: use the equations as the paper prints them.
    """
    longest = float(lengths.max())
    if printed:  # per_row k / (alpha (1 - k + k N / l)) = gain / (N + beyond)
        gain, beyond = per_row / alpha * lengths, (1.0 / k - 1.0) * lengths
        low = 1e-6 * longest
    else:  # per_row / (alpha (k - 1 + N / l)) = gain / (N - beyond'), beyond' = (1 - k) l
        gain, beyond = per_row / alpha * lengths, (k - 1.0) * lengths
        low = -float(beyond.min()) * (1.0 + 1e-9) + 1e-9 * longest
    high = longest
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        saved = gain / (middle + beyond)
        if saved.dot(lengths > middle) > base:  # fewer passes cost more than they save
            low = middle
        else:
            high = middle
    missing = np.maximum(1.0 - high / lengths, 0.0)
    inside = 1.0 - (k * missing if printed else missing / k)
    return Budget(high, lengths / -alpha * np.log(np.maximum(inside, 1e-12)))


class StepBudgets:
    """The optimal budgets as drafts per step, solved again every few steps for the rollouts then live."""

    def __init__(self, lengths: LengthModel, latency: LatencyModel, acceptance: AcceptanceModel, printed: bool) -> None:
        """Solve for these models; ``printed`` uses the equations as the paper prints them."""
        self._lengths, self._latency, self._acceptance = lengths, latency, acceptance
        self._printed = printed
        self._per_step = np.zeros(0)  # by row
        self._credit = np.zeros(0)  # by row: the fraction of a draft not yet given
        self._age = 0

    def drafts(self, rows: Ints) -> npt.NDArray[np.int32]:
        """Whole drafts each live request may propose in this step: int32 [n]."""
        grown = int(rows.max()) + 1 - len(self._credit)
        if grown > 0:
            self._per_step, self._credit = (np.append(a, np.zeros(grown)) for a in (self._per_step, self._credit))
        if self._age == 0:
            base, _, per_row = self._latency.coefficients
            alpha, k = self._acceptance.curve(rows)
            budget = solve(self._lengths.expected(rows), alpha, k, base, per_row, printed=self._printed)
            self._per_step[rows] = budget.per_step
        self._age = (self._age + 1) % _STALE_AFTER
        credit = self._credit[rows] + self._per_step[rows]
        whole = np.floor(credit)
        self._credit[rows] = credit - whole
        return whole.astype(np.int32)

    def open(self, row: int) -> None:
        """A new rollout takes the row: its budget is solved in the coming step."""
        if row < len(self._credit):
            self._per_step[row] = self._credit[row] = 0.0
        self._age = 0
