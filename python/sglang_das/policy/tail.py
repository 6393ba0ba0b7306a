"""The tail: which of the live rollouts will the batch wait for.

A rollout step ends with its slowest rollout. While others wait for a slot, every live rollout holds one up equally:
a token saved anywhere is worth the same. Once nobody waits, only the last to finish counts. Its index is not known,
but its probabilities are: with F_i(x) = P(remaining_i <= x), independent given what the length model knows,

    P(i is last) = sum over x of (F_i(x) - F_i(x-)) prod_{j != i} F_j(x).

They are the stochastic counterpart of the multipliers mu_i of arXiv 2511.13841, problem (6): those are positive for
the requests that bind the makespan, zero for the others, and sum to c_base.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .classes import LengthModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_POINTS = 24
_STALE_AFTER = 8  # steps


def last_to_finish(lasts_beyond: Floats) -> Floats:
    """P(i is last), float64 [n], from P(remaining_i > x_g), float64 [n, G], on increasing x_g, zero at the last."""
    beyond = np.column_stack((np.ones(len(lasts_beyond)), lasts_beyond))
    ends_here = beyond[:, :-1] - beyond[:, 1:]
    by_middle = 1.0 - (beyond[:, :-1] + beyond[:, 1:]) / 2  # those that end between the same two points: even chances
    logs = np.log(np.maximum(by_middle, 1e-12))
    chance = (ends_here * np.exp(logs.sum(axis=0) - logs)).sum(axis=1)
    total = float(chance.sum())
    even: Floats = np.full(len(chance), 1.0 / len(chance))
    return chance / total if total > 1e-9 else even


class Tail:
    """Share of the makespan that hangs on each live rollout, recomputed every few steps."""

    def __init__(self, lengths: LengthModel) -> None:
        """``lengths`` is the model that knows the live rows."""
        self._lengths = lengths
        self._share = np.zeros(0)  # by row
        self._age = 0
        self._most = 0  # live rollouts at the most since the batch was last empty
        self._below_most = 0  # steps in a row with fewer

    def shares(self, rows: Ints, waiting: int | None, pace: Floats) -> Floats:
        """P(row is last to finish), or even shares while rollouts wait for a slot: float64 [n], sums to one.

        ``pace`` float64 [n] is their tokens per step: of two as long, the slower is the last. ``waiting`` is the number
        of rollouts in the queue. Without it, the queue is taken to be empty once a slot stays free for a few steps.
        """
        even: Floats = np.full(len(rows), 1.0 / max(len(rows), 1))
        self._most = max(self._most, len(rows)) if len(rows) else 0
        self._below_most = self._below_most + 1 if len(rows) < self._most else 0
        draining = self._below_most >= 3 if waiting is None else waiting == 0
        if not draining or not self._lengths.has_evidence or len(rows) < 2:
            self._age = 0
            return even
        if self._age == 0:
            ahead = np.geomspace(1.0, max(2.0, float((self._lengths.left(rows) / pace).max())), _POINTS)
            self._share = np.zeros(max(len(self._share), int(rows.max()) + 1))
            known = float(self._lengths.evidence(rows).mean())
            last = last_to_finish(self._lengths.lasts_beyond(rows, ahead * pace[:, None]))
            self._share[rows] = known * last + (1.0 - known) * even
        self._age = (self._age + 1) % _STALE_AFTER
        if int(rows.max()) >= len(self._share):
            self._age = 0
            return even
        share: Floats = self._share[rows]
        total = float(share.sum())
        return share / total if total > 0.01 else even
