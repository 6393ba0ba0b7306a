"""An oracle to measure regret against: it knows lengths, the true costs and what every drafted node is really worth.

It does not know which nodes will agree. It plans for whole rollouts: request i, drafting every node of worth theta or
more, takes n_i(theta) further steps and r_i(theta) rows, which it can read off the texts. Once nobody waits for a
slot, the best N (forward passes to go) and theta_i minimise

    c_base N + sum_i (c_req n_i(theta_i) + c_tok r_i(theta_i))    subject to    n_i(theta_i) <= N,

problem (6) of arXiv 2511.13841 with measured curves in place of its acceptance model. While others wait, each minimises
(c_base / slots + c_req) n_i + c_tok r_i alone. c_tok / theta_i is then the price of a token of i. Packed rows follow
theta_i; a uniform width is the one that gains most at these prices, or most per second, all tokens worth the same
or not. As no price is exact there, :func:`oracles` gives several, of which the best counts.
"""

from __future__ import annotations

import numpy as np
from sglang_das.policy import WidthChoice
from sglang_das.policy.config import PolicyConfig

from .simulation import Arm, Cost, Kept
from .workloads import NODES, Epoch, Floats, Ints, Paths

_THETAS = np.append(np.geomspace(0.004, 0.98, 15), 1.01).astype(np.float32)  # the last: no drafts
_PLANNED_FOR = 16  # steps
_CANDIDATES = 96  # numbers of passes compared
_WIDTHS = np.array(PolicyConfig(max_width=NODES + 1).step_widths)


class Curves:
    """Expected further steps and rows of every rollout from every token on, at every threshold."""

    def __init__(self, epoch: Epoch) -> None:
        tokens = len(epoch.path)
        self.steps = np.empty((tokens, len(_THETAS)), np.float32)
        self.rows = np.empty((tokens, len(_THETAS)), np.float32)
        for column, theta in enumerate(_THETAS):
            drafted = epoch.worth >= theta
            advance = 1.0 + np.where(drafted, epoch.worth, 0.0).sum(axis=1, dtype=np.float64)
            self.steps[:, column] = _to_the_end(1.0 / advance, epoch)
            self.rows[:, column] = _to_the_end((1.0 + drafted.sum(axis=1)) / advance, epoch)


def _to_the_end(values: Floats, epoch: Epoch) -> Floats:
    """Sums from each token to the last of its rollout."""
    total = np.cumsum(values)
    ends = total[epoch.begins + epoch.lengths - 1]
    sums: Floats = np.repeat(ends, epoch.lengths) - total + values
    return sums


class Oracle:
    """Plans every few steps, by what it knows."""

    def __init__(
        self, cost: Cost, slots: int, packed: bool, scale: float = 1.0, by_rate: bool = False, even: bool = False
    ) -> None:
        self.packed = packed
        self._cost, self._slots, self._scale, self._by_rate, self._even = cost, slots, scale, by_rate, even
        self._curves: dict[int, Curves] = {}
        self._epoch: Epoch | None = None
        self._theta = np.zeros(0, np.float32)
        self._age = 0

    def begin(self, rollout: int, epoch: Epoch) -> None:
        """Read its curves off its text."""
        if epoch is not self._epoch:
            self._epoch, self._now = epoch, Curves(epoch)
            self._theta = np.ones(len(epoch.lengths), np.float32)
        self._age = 0

    def end(self, rollout: int, length: int) -> None:
        """Plan anew."""
        self._age = 0

    def learn(self, path: Paths, choice: WidthChoice, kept: Kept, seconds: float) -> None:
        """There is nothing to learn."""

    def choose(self, batch: Ints, done: Ints, waiting: int, path: Paths) -> WidthChoice:
        """Take what the plan says is worth its price."""
        assert self._epoch is not None
        at = self._epoch.begins[batch] + done
        if self._age == 0:
            self._plan(batch, at, waiting)
        self._age = (self._age + 1) % _PLANNED_FOR
        room = (self._epoch.lengths[batch] - done - 1).clip(0, NODES)
        worth = np.where(np.arange(NODES) < room[:, None], self._epoch.worth[at], 0.0)
        theta = self._theta[batch][:, None] / self._scale
        if self.packed:
            drafts = (worth >= theta).sum(axis=1).astype(np.int32)
            return WidthChoice(int(drafts.max()) + 1, drafts, 0.0, 0.0, False)
        requests = len(batch)
        price = np.ones(requests) if self._even else self._cost.slope(2 * requests) / theta[:, 0]
        value = np.append(0.0, np.cumsum(price @ worth))[_WIDTHS - 1]
        times = np.array([self._cost(requests, requests * int(width)) for width in _WIDTHS])
        gain = (value + price.sum()) / times if self._by_rate else value - times
        width = int(_WIDTHS[int(np.argmax(gain))])
        drafts = np.minimum((worth > 0.0).sum(axis=1), width - 1).astype(np.int32)
        return WidthChoice(width, drafts, 0.0, 0.0, False)

    def _plan(self, batch: Ints, at: Ints, waiting: int) -> None:
        requests = len(batch)
        per_row = self._cost.slope(2 * requests)
        base = self._cost(0, requests) - per_row * requests
        steps, rows = self._now.steps[at], self._now.rows[at]
        share = base / self._slots if waiting else 0.0
        spent = (share + self._cost.per_request) * steps + per_row * rows
        if waiting:
            self._theta[batch] = _THETAS[np.argmin(spent, axis=1)]
            return
        fewest, most = steps.min(axis=1).max(), steps[:, -1].max()
        best, best_column = np.inf, np.full(requests, len(_THETAS) - 1)
        for passes in np.linspace(fewest, most, _CANDIDATES):
            allowed = np.where(steps <= passes * (1 + 1e-6), spent, np.inf)
            column = allowed.argmin(axis=1)
            total = base * passes + float(allowed[np.arange(requests), column].sum())
            if total < best:
                best, best_column = total, column
        self._theta[batch] = _THETAS[best_column]


def oracles(cost: Cost, slots: int, packed: bool) -> list[Arm]:
    """The clairvoyant arms."""
    if packed:
        return [Oracle(cost, slots, packed, scale=1.0)]
    by_price = [Oracle(cost, slots, packed, scale) for scale in (0.5, 1.0, 2.0)]
    by_rate = [Oracle(cost, slots, packed, by_rate=True, even=even) for even in (False, True)]
    return [*by_price, *by_rate]
