"""Acceptance model: how many tokens of a rollout come from drafts, if so many are proposed.

    A(p) = k l (1 - exp(-alpha p / l))                                    (arXiv 2511.13841, equation (3))

p drafts proposed over the l tokens of a rollout, alpha their first efficiency, k the most of its tokens that drafts
can ever supply. A drafter capped at d nodes a step tells both: if it then proposes D(d) nodes a step and a(d) of
them are accepted, l tokens take l / (1 + a) steps, so

    p / l = D / (1 + a),      A / l = a / (1 + a)      for d = 1, 2, ...

are points of the curve. a(d) and D(d) are averages over request steps of what their nodes promise by calibrated
probability, verified or not: so the choice of widths does not colour them, and no curve bends by whom it was tried on.
Nor do budgets: a step in which a request might draft no more than c nodes says nothing of the nodes after them.

Pooled over two levels: a problem's averages are its own and :data:`_BORROWED` request steps of all problems', so that a
new problem starts with the common curve and soon has its own. alpha and k are fitted to them by least squares.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_KEEP = 0.98  # share of the common evidence kept per step
_MEMORY = 512.0  # request steps a problem remembers
_BORROWED = 32.0  # request steps of the common average that a problem starts with
_REFIT_EVERY = 16  # steps
_ALPHAS = np.geomspace(0.05, 20.0, 61)
_START = 0.7  # alpha and k without evidence
_LEAST_K = 0.01
_PROMISE = 1e-6  # drafts accepted in a request step of which something can be learned


class AcceptanceModel:
    """alpha and k, common and by problem."""

    def __init__(self, nodes: int, max_problems: int) -> None:
        """Drafts have at most ``nodes`` nodes."""
        self._nodes = nodes
        self._common = np.zeros((2, nodes))  # accepted and proposed by depth, summed over steps of one request
        self._common_steps = np.zeros(nodes)
        self._slot_of: OrderedDict[int, int] = OrderedDict()  # problem -> index into the arrays below
        self._max_problems = max_problems
        self._evidence = np.zeros((0, 2, nodes))
        self._steps = np.zeros((0, nodes))
        self._alpha = np.zeros(0)
        self._k = np.zeros(0)
        self._slot_of_row = np.zeros(0, np.int64)
        self._observed = 0
        self.alpha, self.k = _START, _START

    def open(self, row: int, problem: int) -> None:
        """A rollout of this problem takes the row."""
        if row >= len(self._slot_of_row):
            more = max(64, row + 1 - len(self._slot_of_row), len(self._slot_of_row))
            self._slot_of_row = np.append(self._slot_of_row, np.zeros(more, np.int64))
        self._slot_of_row[row] = self._slot(problem)

    def observe(
        self,
        rows: Ints,
        probabilities: npt.NDArray[np.float32],
        usable: npt.NDArray[np.int32],
        allowed: npt.NDArray[np.int32],
    ) -> None:
        """Nodes drafted in a step: the first ``usable`` int32 [n] of calibrated path probabilities float32 [n, K].

        ``allowed`` int32 [n] is how many there might have been.
        """
        nodes = min(probabilities.shape[1], self._nodes)
        depths = np.arange(self._nodes, dtype=np.int32)
        drafted = depths[:nodes] < usable[:, None]
        asked = (depths < allowed[:, None]).astype(np.float64)
        seen = np.zeros((len(rows), 2, self._nodes))
        seen[:, 0, :nodes] = probabilities[:, :nodes] * drafted
        seen[:, 1, :nodes] = drafted
        share = asked.mean(axis=0)
        kept = 1.0 - (1.0 - _KEEP) * share
        self._common = self._common * kept + seen.mean(axis=0)
        self._common_steps = self._common_steps * kept + share
        slots = self._slot_of_row[rows]
        np.add.at(self._evidence, slots, seen)
        np.add.at(self._steps, slots, asked)
        self._observed += 1
        if self._observed % _REFIT_EVERY == 0:
            self._refit(np.unique(slots))

    def curve(self, rows: Ints) -> tuple[Floats, Floats]:
        """(alpha, k) of each live rollout, float64 [n] each."""
        slots = self._slot_of_row[rows]
        return self._alpha[slots], self._k[slots]

    def _slot(self, problem: int) -> int:
        slot = self._slot_of.get(problem)
        if slot is None:
            full = len(self._slot_of) >= self._max_problems
            slot = self._slot_of.popitem(last=False)[1] if full else len(self._slot_of)
            if slot >= len(self._steps):
                more = max(64, len(self._steps))
                self._evidence = np.append(self._evidence, np.zeros((more, 2, self._nodes)), axis=0)
                self._steps = np.append(self._steps, np.zeros((more, self._nodes)), axis=0)
                self._alpha, self._k = (np.append(array, np.zeros(more)) for array in (self._alpha, self._k))
            self._slot_of[problem] = slot
            self._evidence[slot], self._steps[slot] = 0.0, 0.0
            self._alpha[slot], self._k[slot] = self.alpha, self.k
        self._slot_of.move_to_end(problem)
        return slot

    def _refit(self, slots: Ints) -> None:
        """Fit the common curve, and those of the problems live in this step."""
        common = self._common / np.maximum(self._common_steps, 1e-12)
        averages = self._evidence[slots] + _BORROWED * common
        averages /= (self._steps[slots] + _BORROWED)[:, None, :]
        if common[0].sum() > _PROMISE:
            alpha, k = _fit(np.concatenate((common[None], averages)))
            self.alpha, self.k = float(alpha[0]), float(k[0])
            self._alpha[slots], self._k[slots] = alpha[1:], k[1:]
        kept = np.minimum(1.0, _MEMORY / np.maximum(self._steps[slots], 1.0))
        self._evidence[slots] *= kept[:, None, :]
        self._steps[slots] *= kept


def _fit(averages: Floats) -> tuple[Floats, Floats]:
    """(alpha, k), [m] each, of least squares of A / l over p / l; k is linear, alpha searched.

    ``averages`` [m, 2, nodes]: accepted and proposed in a request step, by depth. k is never zero: (7') divides by it.
    """
    accepted, proposed = np.cumsum(averages, axis=2).swapaxes(0, 1)
    share, effort = accepted / (1.0 + accepted), proposed / (1.0 + accepted)
    rise = 1.0 - np.exp(-_ALPHAS[:, None] * effort[:, None, :])  # [m, alphas, nodes]
    k = np.einsum("man,mn->ma", rise, share) / np.maximum((rise * rise).sum(axis=2), 1e-12)
    k = np.clip(k, _LEAST_K, 1.0)
    best = ((k[:, :, None] * rise - share[:, None, :]) ** 2).sum(axis=2).argmin(axis=1)
    return _ALPHAS[best], k[np.arange(len(k)), best]
