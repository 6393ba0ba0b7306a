"""Latency model: the time of a verify step of b requests and n rows, learned from the engine's own steps.

    t(b, n) = level * (c_base + c_req * b + c_tok * n) * exp(residual(b, n))

The line generalises arXiv 2511.13841, equation (1), which has no c_req. The residual bends it: real cost is a curve
over rows, flat while the device is idle and steep beyond. ``level`` follows the machine's load, so that a width not
tried for a while is not mistaken for a cheap one merely because the machine was quiet then.

Single steps may take ten times as long as they should, so nothing here is an average. Each cell of a grid (bucket
of requests, rows per request) keeps its last samples and their median. The line is fitted to the medians, by
relative error, cells with more samples weighing more. The residual of a cell is what its median says beyond the
line, trusted as far as it has samples, and lent to neighbouring cells that have fewer.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_BUCKETS = tuple(sorted({round(base * 2**power) for power in range(13) for base in (1.0, 1.5)}))
_SAMPLES = 127  # kept per cell: enough for a steady median, few enough to forget
_BEND = 0.06  # how far, in log time, a cell is expected to lie off what the line and its neighbours say
_NOISE = 0.1  # spread of log step times, until it is known
_LEND = 0.3  # weight of the adjacent cell's residual
_PRIOR = np.array([1.0, 0.005, 0.015])  # c_base, c_req, c_tok relative to c_base: moderate widths look worth a try
_PRIOR_WEIGHT = 0.05  # pull to the prior, in cells
_FIRST_GUESS = 0.03  # seconds of c_base before the first sample
_REFIT_EVERY = 8
_SETTLED = 9  # samples after which a cell can tell whether the level has moved
_RECENT = 15  # steps the level looks back: a change of load shows after half of them


class LatencyModel:
    """Step time over (requests, rows)."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        """Start from a prior; ``widths`` are the rows per request at which time is learned, increasing from 1."""
        self._widths = np.array(widths, np.float64)
        self._between = np.sqrt(self._widths[1:] * self._widths[:-1]).tolist()
        shape = (len(_BUCKETS), len(widths))
        self._samples = np.zeros((*shape, _SAMPLES))
        self._count = np.zeros(shape, np.int64)
        self._median = np.ones(shape)
        self._line = _PRIOR * _FIRST_GUESS
        self._residual = np.zeros(shape)
        self._grid_line = self._on_grid()
        self._level = 1.0
        self._recent = np.ones(_RECENT)
        self._settled_steps = 0
        self._observed = 0
        self._next_refit = 1
        self._cached: tuple[int, Floats] | None = None
        self._lend_over_requests = _LEND ** np.abs(np.subtract.outer(np.arange(shape[0]), np.arange(shape[0])))
        self._lend_over_widths = _LEND ** np.abs(np.subtract.outer(np.arange(shape[1]), np.arange(shape[1])))

    def seconds(self, requests: int) -> Floats:
        """Expected step time of ``requests`` requests at each width: float64 [widths]."""
        if self._cached is None or self._cached[0] != requests:
            base, per_request, per_row = self._line
            line = base + per_request * requests + per_row * requests * self._widths
            bent = line * np.exp(self._residual[bucket(requests)])
            self._cached = (requests, np.maximum.accumulate(bent) * self._level)  # more rows never cost less
        return self._cached[1]

    def seconds_of_rows(self, requests: int, rows: int | list[int] | npt.NDArray[np.int64]) -> Floats:
        """Expected step time of ``requests`` requests that verify ``rows`` rows in all, elementwise."""
        times: Floats = np.interp(np.asarray(rows), requests * self._widths, self.seconds(requests))
        return times

    def samples(self, requests: int) -> npt.NDArray[np.int64]:
        """Steps seen of about this many requests, at each width: int64 [widths]."""
        count: npt.NDArray[np.int64] = self._count[bucket(requests)]
        return count

    def observe(self, requests: int, rows: int, seconds: float) -> None:
        """A verify step of ``requests`` requests and ``rows`` rows in all took ``seconds``."""
        row, column = bucket(requests), self.column(rows / requests)
        base, per_request, per_row = self._line
        line = base + per_request * requests + per_row * rows
        sized = seconds * float(self._grid_line[row, column]) / line  # as if at the very centre of its cell
        count = int(self._count[row, column])
        if count >= _SETTLED:
            self._recent[self._settled_steps % _RECENT] = sized / self._median[row, column]
            self._settled_steps += 1
            self._level = _median(self._recent)
        sample = sized / self._level
        kept = self._samples[row, column]
        kept[count % _SAMPLES] = sample
        self._count[row, column] = count + 1
        self._median[row, column] = _median(kept[: min(count + 1, _SAMPLES)])
        self._observed += 1
        self._cached = None
        if self._observed >= self._next_refit:
            self._refit()
            self._next_refit = self._observed + (1 if count < _SETTLED else _REFIT_EVERY)

    def column(self, width: float) -> int:
        """Index of the grid width nearest to this many rows per request."""
        return bisect_right(self._between, width)

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """(c_base, c_req, c_tok) in seconds, at the present level."""
        base, per_request, per_row = (self._line * self._level).tolist()
        return base, per_request, per_row

    def _on_grid(self) -> Floats:
        requests = np.array(_BUCKETS, np.float64)[:, None]
        line: Floats = self._line[0] + self._line[1] * requests + self._line[2] * requests * self._widths
        return line

    def _refit(self) -> None:
        """Fit the line to the medians, non-negative and pulled to the prior; then the residuals."""
        trust_at = self._samples_to_trust()
        rows, columns = np.nonzero(self._count)
        count, median = np.minimum(self._count[rows, columns], _SAMPLES), self._median[rows, columns]
        requests = np.array(_BUCKETS, np.float64)[rows]
        features = np.stack((np.ones(len(rows)), requests, requests * self._widths[columns]), axis=1)
        weight = count / (count + trust_at)
        scale = _weighted_median(median / (features @ _PRIOR), weight)
        prior = _PRIOR * scale
        design, target = features / median[:, None], np.ones(len(rows))
        gram = (design * weight[:, None]).T @ design + np.diag(_PRIOR_WEIGHT / prior**2)
        moment = design.T @ (weight * target) + _PRIOR_WEIGHT / prior
        self._line = _non_negative(gram, moment)
        self._grid_line = self._on_grid()

        beyond_line = np.zeros(self._count.shape)
        beyond_line[rows, columns] = np.log(median / self._grid_line[rows, columns])
        held = np.minimum(self._count, _SAMPLES)
        trust = held / (held + trust_at)
        lent = self._lend_over_requests @ (trust * beyond_line) @ self._lend_over_widths
        lenders = self._lend_over_requests @ trust @ self._lend_over_widths
        around = lent / (lenders + 0.5)
        self._residual = trust * beyond_line + (1.0 - trust) * around

    def _samples_to_trust(self) -> float:
        """Samples at which a cell's own median, by its noise, is as good as what its surroundings say."""
        noise = _NOISE
        if self._settled_steps >= _RECENT:
            noise = 1.48 * _median(np.abs(np.log(self._recent / self._level)))
        return 1.0 + 1.57 * (noise / _BEND) ** 2  # pi / 2: the variance of a median over that of a mean


def bucket(requests: int) -> int:
    """Index of the grid bucket that holds this many requests."""
    return bisect_right(_BUCKETS, requests) - 1


def _median(values: Floats) -> float:
    middle = (len(values) - 1) // 2  # the lower of two: outliers are always slow
    return float(np.partition(values, middle)[middle])


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(cumulative, cumulative[-1] / 2)]])


def _non_negative(gram: Floats, moment: Floats) -> Floats:
    """Minimise x'Gx/2 - m'x over x >= 0 for the three coefficients: drop the most negative one until none is."""
    active = np.ones(len(moment), np.bool_)
    solution = np.zeros(len(moment))
    while active.any():
        solution[:] = 0.0
        solution[active] = np.linalg.solve(gram[np.ix_(active, active)], moment[active])
        if (solution >= 0.0).all():
            break
        active[int(np.argmin(solution))] = False
    return solution
