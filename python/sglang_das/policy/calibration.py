"""Calibration: what a drafted token's path probability has turned out to be worth.

The drafter's probabilities may be over- or under-confident, the more so on text unlike what it learned from.
Drafted nodes are counted by bucket of path probability: how many were expected to be accepted (the sum of their
probabilities) and how many were. Over all, accepted / expected is one until there is evidence; a bucket is
corrected by its own ratio, drawn to that of all while few of its nodes were verified. The buckets are then made
monotone by pooling neighbours that are out of order. Counts fade, so the correction follows the model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.float32]

_BUCKETS = 12
_RESOLUTION = 1024
_STUBBORN = 8.0  # expected tokens before a ratio counts half
_KEEP = 0.999  # share of the counts kept per observed step


class Calibration:
    """A monotone map of path probabilities to acceptance frequencies, learned online from identity."""

    def __init__(self) -> None:
        """Start at identity."""
        self._expected = np.zeros(_BUCKETS)
        self._accepted = np.zeros(_BUCKETS)
        self._drafted = np.zeros(_BUCKETS)
        self._since_refit = 0
        self._grid = np.linspace(0.0, 1.0, _RESOLUTION + 1)
        self._map = self._grid.astype(np.float32)

    def __call__(self, probabilities: Probabilities) -> Probabilities:
        """Corrected path probabilities, same shape and order."""
        at = (probabilities * np.float32(_RESOLUTION) + np.float32(0.5)).astype(np.int32)
        corrected: Probabilities = self._map.take(at, mode="clip")
        return corrected

    def observe(
        self, probabilities: Probabilities, drafts: npt.NDArray[np.int32], accepted: npt.NDArray[np.bool_]
    ) -> None:
        """Learn from a verify step: of its nodes request i verified the first ``drafts[i]``; [n, K] ``accepted``."""
        verified = np.arange(probabilities.shape[1]) < drafts[:, None]
        values = probabilities[verified].astype(np.float64)
        if not len(values):
            return
        at = np.minimum((values * _BUCKETS).astype(np.int64), _BUCKETS - 1)
        for total, weights in ((self._expected, values), (self._accepted, accepted[verified]), (self._drafted, None)):
            total *= _KEEP
            total += np.bincount(at, weights, minlength=_BUCKETS)
        self._since_refit += 1
        if self._since_refit >= 4:
            self._refit()

    @property
    def ratio(self) -> float:
        """Accepted over expected tokens, over all buckets; 1 before any evidence."""
        return float((self._accepted.sum() + _STUBBORN) / (self._expected.sum() + _STUBBORN))

    def _refit(self) -> None:
        self._since_refit = 0
        middle = (np.arange(_BUCKETS) + 0.5) / _BUCKETS
        center = (self._expected + middle) / (self._drafted + 1.0)
        ratio = (self._accepted + _STUBBORN * self.ratio) / (self._expected + _STUBBORN)
        value = np.minimum(center * ratio, 1.0)
        value = _pooled(value, self._drafted + 1.0)
        end = max(value[-1], min(1.0, value[-1] / center[-1]))
        knots = np.concatenate(((0.0,), center, (1.0,)))
        self._map = np.interp(self._grid, knots, np.concatenate(((0.0,), value, (end,)))).astype(np.float32)


def _pooled(values: Floats, weights: Floats) -> Floats:
    """The non-decreasing sequence nearest to ``values`` (pool adjacent violators), over a dozen buckets."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, mass, length = blocks.pop()
            total = mass + block[1]
            block = ((mean * mass + block[0] * block[1]) / total, total, length + block[2])
        blocks.append(block)
    return np.repeat([mean for mean, _, _ in blocks], [length for _, _, length in blocks])
