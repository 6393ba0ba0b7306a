"""Acceptance model: how many tokens of a rollout come from drafts, if so many are proposed.

    A(p) = k l (1 - exp(-alpha p / l))                                    (arXiv 2511.13841, equation (3))

p drafts proposed over the l tokens of a rollout, alpha their first efficiency, k the most of its tokens that drafts
can ever supply. A drafter capped at d nodes a step tells both: if it then proposes D(d) nodes a step and a(d) of
them are accepted, l tokens take l / (1 + a) steps, so

    p / l = D / (1 + a),      A / l = a / (1 + a)      for d = 1, 2, ...

are points of the curve. a(d) and D(d) are averages over all requests of what their nodes promise by calibrated
probability, verified or not: so the choice of widths does not colour them. alpha and k are fitted to these points
over all problems; a problem, and a rollout within it, scales alpha by its own yield, drawn to the common one while
it is young.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_KEEP = 0.98  # share of the evidence kept per step
_REFIT_EVERY = 32
_BORROWED = 64.0  # nodes of common yield that a problem starts with
_MEMORY = 512.0  # nodes of a problem's past that its next rollout starts with
_ALPHAS = np.geomspace(0.05, 20.0, 61)


class AcceptanceModel:
    """alpha and k, common and by rollout."""

    def __init__(self, nodes: int, max_problems: int) -> None:
        """Drafts have at most ``nodes`` nodes."""
        self._accepted = np.zeros(nodes)  # by depth, per request and step
        self._proposed = np.zeros(nodes)
        self._mass = 0.0
        self._steps = 0
        self.alpha, self.k = 0.7, 0.7
        self._max_problems = max_problems
        self._of_problem: OrderedDict[int, tuple[float, float]] = OrderedDict()
        self._row_accepted = np.zeros(0)
        self._row_proposed = np.zeros(0)

    def open(self, row: int, problem: int) -> None:
        """A rollout of this problem takes the row."""
        if row >= len(self._row_accepted):
            more = np.zeros(max(64, row + 1 - len(self._row_accepted), len(self._row_accepted)))
            self._row_accepted = np.append(self._row_accepted, more)
            self._row_proposed = np.append(self._row_proposed, more)
        self._row_accepted[row], self._row_proposed[row] = self._of_problem.get(problem, (0.0, 0.0))

    def close(self, row: int, problem: int) -> None:
        """The rollout is over; its problem remembers its yield."""
        accepted, proposed = float(self._row_accepted[row]), float(self._row_proposed[row])
        scale = min(1.0, _MEMORY / max(proposed, 1.0))
        self._of_problem[problem] = (accepted * scale, proposed * scale)
        self._of_problem.move_to_end(problem)
        if len(self._of_problem) > self._max_problems:
            self._of_problem.popitem(last=False)

    def observe(self, rows: Ints, probabilities: npt.NDArray[np.float32], usable: npt.NDArray[np.int32]) -> None:
        """Nodes drafted in a step: the first ``usable`` int32 [n] of calibrated path probabilities float32 [n, K]."""
        nodes = min(probabilities.shape[1], len(self._accepted))
        drafted = np.arange(nodes, dtype=np.int32) < usable[:, None]
        promised = probabilities[:, :nodes] * drafted
        for total, values in ((self._accepted, promised), (self._proposed, drafted)):
            total *= _KEEP
            total[:nodes] += values.sum(axis=0) / len(rows)
        self._mass = self._mass * _KEEP + 1.0
        self._row_accepted[rows] = self._row_accepted[rows] * _KEEP + promised.sum(axis=1)
        self._row_proposed[rows] = self._row_proposed[rows] * _KEEP + np.minimum(usable, nodes)
        self._steps += 1
        if self._steps % _REFIT_EVERY == 0:
            self._refit()

    def alphas(self, rows: Ints) -> Floats:
        """alpha of each live rollout: float64 [n]."""
        common = float(self._accepted.sum()) / max(float(self._proposed.sum()), 1e-9)
        if common <= 0.0:
            return np.full(len(rows), self.alpha)
        own = (self._row_accepted[rows] + _BORROWED * common) / (self._row_proposed[rows] + _BORROWED)
        alphas: Floats = self.alpha * own / common
        return alphas

    def _refit(self) -> None:
        """Least squares of A / l over p / l; k is linear, alpha searched."""
        accepted = np.cumsum(self._accepted) / self._mass
        proposed = np.cumsum(self._proposed) / self._mass
        if accepted[-1] <= 1e-6:
            return
        share, effort = accepted / (1.0 + accepted), proposed / (1.0 + accepted)
        rise = 1.0 - np.exp(-np.multiply.outer(_ALPHAS, effort))
        k = np.clip(rise @ share / np.maximum((rise * rise).sum(axis=1), 1e-12), 0.01, 1.0)
        error = ((k[:, None] * rise - share) ** 2).sum(axis=1)
        best = int(error.argmin())
        self.alpha, self.k = float(_ALPHAS[best]), float(k[best])
