"""The tail: which of the live rollouts will the batch wait for.

A rollout step ends with its slowest rollout. Once nobody waits for a slot, only the last to finish counts. Its index is
not known, but its probabilities are: with F_i(x) = P(remaining_i <= x), independent given what the length model knows,

    P(i is last) = sum over x of (F_i(x) - F_i(x-)) prod_{j != i} F_j(x).

They are the stochastic counterpart of the multipliers mu_i of arXiv 2511.13841, problem (6): those are positive for
the requests that bind the makespan, zero for the others, and sum to c_base.

While rollouts wait, whoever finishes holds up the one that takes its slot. F_i is then that of the slot: of the w that
wait, one follows on each of the first w to finish, as long as any rollout of which nothing is known. With as many
waiting as live, every slot is refilled: all hold up the queue equally, and a token saved anywhere is worth the same.
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


def with_followers(lasts_beyond: Floats, waiting: int, follower: Floats) -> Floats:
    """P(slot i is busy beyond x_g), float64 [n, G], if the first ``waiting`` to finish are each followed by another.

    Args:
        lasts_beyond: P(remaining_i > x_g), float64 [n, G], zero at the last.
        waiting: how many followers there are, below n.
        follower: P(a follower lasts beyond x_g - x_h), float64 [G, G] by g and h; read for x_h <= x_g.
    """
    ends_here = np.column_stack((np.ones(len(lasts_beyond)), lasts_beyond[:, :-1])) - lasts_beyond
    ended = ends_here.sum(axis=0)
    before = np.cumsum(ended) - ended
    followed = np.clip((waiting - before) / np.maximum(ended, 1e-12), 0.0, 1.0)  # share of those that end at x_h
    busy: Floats = lasts_beyond + (ends_here * followed) @ np.tril(follower).T
    return busy


class Tail:
    """Share of the makespan that hangs on each live rollout, recomputed every few steps."""

    def __init__(self, lengths: LengthModel) -> None:
        """``lengths`` is the model that knows the live rows."""
        self._lengths = lengths
        self._share = np.zeros(0)  # by row; NaN where it is not known
        self._age = 0
        self._most = 0  # live rollouts at the most since the batch was last empty
        self._below_most = 0  # steps in a row with fewer

    def shares(self, rows: Ints, waiting: int | None, pace: Floats) -> Floats:
        """P(the slot of a row is the last to be free), or even shares if all will be refilled: float64 [n], of sum one.

        ``pace`` float64 [n] is their tokens per step: of two as long, the slower is the last. ``waiting`` is the number
        of rollouts in the queue. Without it, the queue is taken to be empty once a slot stays free for a few steps, and
        to refill all of them before.
        """
        even: Floats = np.full(len(rows), 1.0 / max(len(rows), 1))
        if waiting is None:
            waiting = self._guess(len(rows))
        if waiting >= len(rows) or not self._lengths.has_evidence or len(rows) < 2:
            self._age = 0
            return even
        if self._age == 0 or not self._knows(rows):
            known = float(self._lengths.evidence(rows).mean())
            self._share = np.full(max(len(self._share), int(rows.max()) + 1), np.nan)
            self._share[rows] = known * self._last(rows, waiting, pace) + (1.0 - known) * even
            self._age = 0
        self._age = (self._age + 1) % _STALE_AFTER
        share: Floats = self._share[rows]
        total = float(share.sum())
        return share / total if total > 0.01 else even

    def open(self, row: int) -> None:
        """A rollout takes the row: what was said of the one before it no longer holds."""
        if row < len(self._share):
            self._share[row] = np.nan

    def _knows(self, rows: Ints) -> bool:
        return int(rows.max()) < len(self._share) and not np.isnan(self._share[rows]).any()

    def batch_ended(self) -> None:
        """No rollout is live any more: how many the next batch has room for is not known."""
        self._age = self._most = self._below_most = 0

    def _guess(self, live: int) -> int:
        """Rollouts that wait, to judge by slots that stay free."""
        self._most = max(self._most, live)
        self._below_most = self._below_most + 1 if live < self._most else 0
        return 0 if self._below_most >= 3 else live

    def _last(self, rows: Ints, waiting: int, pace: Floats) -> Floats:
        longest = float((self._lengths.left(rows) / pace).max())
        if not waiting:
            ahead = np.geomspace(1.0, max(2.0, longest), _POINTS)
            return last_to_finish(self._lengths.lasts_beyond(rows, ahead * pace[:, None]))
        common, cap = float(pace.mean()), self._lengths.longest_allowed(rows)
        ahead = np.geomspace(1.0, max(2.0, longest + cap / common), _POINTS)
        after = np.maximum(np.subtract.outer(ahead, ahead), 0.0) * common
        alone = self._lengths.lasts_beyond(rows, ahead * pace[:, None])
        return last_to_finish(with_followers(alone, waiting, self._lengths.unknown_beyond(after, cap)))
