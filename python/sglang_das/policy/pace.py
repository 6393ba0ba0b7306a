"""Pace: how many tokens each live rollout gains per step, as drafts have lately gone for it.

Of two rollouts with as many tokens to go, the batch waits for the one whose drafts fail.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_KEEP = 0.98  # share of a rollout's evidence kept per step
_BORROWED = 8.0  # steps of the batch's pace that a rollout starts with


class Pace:
    """Tokens per step, by row."""

    def __init__(self) -> None:
        """Start at one token a step."""
        self._tokens = np.zeros(0)
        self._steps = np.zeros(0)

    def open(self, row: int) -> None:
        """A new rollout takes the row."""
        grown = row + 1 - len(self._steps)
        if grown > 0:
            more = np.zeros(max(64, grown, len(self._steps)))
            self._tokens, self._steps = np.append(self._tokens, more), np.append(self._steps, more)
        self._tokens[row] = self._steps[row] = 0.0

    def observe(self, rows: Ints, emitted: npt.NDArray[np.int32]) -> None:
        """Each row emitted so many tokens in a step."""
        self._tokens[rows] = self._tokens[rows] * _KEEP + emitted
        self._steps[rows] = self._steps[rows] * _KEEP + 1.0

    def __call__(self, rows: Ints) -> Floats:
        """Tokens per step of each row, drawn to that of all while it is young: float64 [n], at least one."""
        tokens, steps = self._tokens[rows], self._steps[rows]
        common = (tokens.sum() + 1.0) / (steps.sum() + 1.0)
        pace: Floats = (tokens + _BORROWED * common) / (steps + _BORROWED)
        return pace
