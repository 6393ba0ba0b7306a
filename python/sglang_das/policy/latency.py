"""Latency model: the time of a verify step of b requests and n rows, learned from the engine's own steps.

    t(b, n) = level * (c_base + c_req * b + c_tok * n) * exp(residual(b, n))

The line generalises arXiv 2511.13841, equation (1), which has no c_req. The residual bends it: real cost is a curve
over rows, flat while the device is idle and steep beyond. ``level`` follows the machine's load, so that a width not
tried for a while is not mistaken for a cheap one merely because the machine was quiet then.

Single steps may take ten times as long as they should, so nothing here is an average. Each cell of a grid (bucket
of requests, rows per request) keeps its last samples. Its median is that of sample over line; the line is fitted to
the medians, by relative error, cells with more samples weighing more. The residual of a cell is what its median says
beyond the line, trusted as far as it has samples, and lent to neighbouring cells that have fewer.

While a batch drains its steps become shorter, which must not be taken for a falling load: the mistake would add up
from each batch size to the next. So only steps of about the same requests are compared for the level, and it moves only
where they differ by more than noise does.
"""

from __future__ import annotations

import math
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
_ERRORS = 255  # steps over which the relative error is reported
_SAME_SIZE = 0.03  # batches that differ by less are compared to tell a change of load
_LEAST_CHANGE = 0.06  # of the level, in log time, beside what noise may do


class LatencyModel:
    """Step time over (requests, rows)."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        """Start from a prior; ``widths`` are the rows per request at which time is learned, increasing from 1."""
        self._widths = np.array(widths, np.float64)
        self._between = np.sqrt(self._widths[1:] * self._widths[:-1]).tolist()
        shape = (len(_BUCKETS), len(widths))
        self._requests, self._rows, self._seconds = np.zeros((3, *shape, _SAMPLES))  # of the samples; at level one
        self._count = np.zeros(shape, np.int64)
        self._line = _PRIOR * _FIRST_GUESS
        self._residual = np.zeros(shape)
        self._level = 1.0
        self._recent = np.ones(_RECENT)
        self._errors = np.zeros(_ERRORS)
        self._noise = _NOISE
        self._compared = self._predicted = self._observed = 0
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
        count = int(self._count[row, column])
        if count >= _SETTLED:
            self._score(requests, rows, row, column, seconds)
            self._compare(requests, rows, row, column, seconds)
        at = row, column, count % _SAMPLES
        self._requests[at], self._rows[at], self._seconds[at] = requests, rows, seconds / self._level
        self._count[row, column] = count + 1
        self._observed += 1
        self._cached = None
        if self._observed >= self._next_refit:
            self._refit()
            self._next_refit = self._observed + (1 if count < _SETTLED else _REFIT_EVERY)

    def learn(self, steps: list[tuple[int, int, float, int]]) -> None:
        """Take (requests, rows, median seconds, samples) of steps measured beforehand, as settled as they are."""
        for requests, rows, seconds, samples in steps:
            for _ in range(min(samples, _SETTLED)):
                self.observe(requests, rows, seconds)

    def table(self) -> list[dict[str, float]]:
        """What was measured: median ``seconds`` by number of ``requests`` and ``width``, over ``samples`` steps."""
        table = []
        for row, column in np.argwhere(self._count).tolist():
            held = min(int(self._count[row, column]), _SAMPLES)
            requests, rows, seconds = (a[row, column, :held] for a in (self._requests, self._rows, self._seconds))
            for size in np.unique(requests).tolist():
                same = requests == size
                cell = {"requests": int(size), "width": float(self._widths[column])}
                cell |= {"rows": round(float(rows[same].mean())), "seconds": _median(seconds[same]) * self._level}
                table.append(cell | {"samples": int(same.sum())})
        return table

    def _score(self, requests: int, rows: int, row: int, column: int, seconds: float) -> None:
        line = float(_along(self._line, requests, rows))
        predicted = self._level * line * math.exp(self._residual[row, column])
        self._errors[self._predicted % _ERRORS] = abs(seconds / predicted - 1.0)
        self._predicted += 1

    def _compare(self, requests: int, rows: int, row: int, column: int, seconds: float) -> None:
        """Learn the level from a step and those of about the same size before it."""
        held = min(int(self._count[row, column]), _SAMPLES)
        known, of_rows, took = (a[row, column, :held] for a in (self._requests, self._rows, self._seconds))
        same = np.abs(known - requests) <= _SAME_SIZE * requests
        if np.count_nonzero(same) < _SETTLED:
            return
        usual = _median(took[same] / _along(self._line, known[same], of_rows[same]))
        self._recent[self._compared % _RECENT] = seconds / float(_along(self._line, requests, rows)) / usual
        self._compared += 1
        level = _median(self._recent)
        if self._compared >= _RECENT:
            self._noise = 1.48 * _median(np.abs(np.log(self._recent / level)))
        by_chance = 2.5 * self._noise / math.sqrt(_RECENT)  # two standard deviations of a median
        if abs(math.log(level / self._level)) > _LEAST_CHANGE + by_chance:
            self._level = level

    @property
    def relative_error(self) -> float:
        """Median error of the last predictions, of one; 0 before any. arXiv 2511.13841 reports a mean of 0.12."""
        return _median(self._errors[: min(self._predicted, _ERRORS)]) if self._predicted else 0.0

    def column(self, width: float) -> int:
        """Index of the grid width nearest to this many rows per request."""
        return bisect_right(self._between, width)

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """(c_base, c_req, c_tok) in seconds, at the present level."""
        base, per_request, per_row = (self._line * self._level).tolist()
        return base, per_request, per_row

    def _refit(self) -> None:
        """Fit the line to the medians, non-negative and pulled to the prior; then the residuals."""
        trust_at = self._samples_to_trust()
        cells = np.nonzero(self._count)
        held = np.minimum(self._count[cells], _SAMPLES)
        requests, rows, seconds = self._requests[cells], self._rows[cells], self._seconds[cells]
        requests_at, rows_at = requests.sum(axis=1) / held, rows.sum(axis=1) / held
        features = np.stack((np.ones(len(held)), requests_at, rows_at), axis=1)
        weight = held / (held + trust_at)
        median = _medians(seconds / _along(self._line, requests, rows), held) * (features @ self._line)
        prior = _PRIOR * _weighted_median(median / (features @ _PRIOR), weight)
        design = features / median[:, None]
        gram = (design * weight[:, None]).T @ design + np.diag(_PRIOR_WEIGHT / prior**2)
        self._line = _non_negative(gram, design.T @ weight + _PRIOR_WEIGHT / prior)

        beyond_line, trust = np.zeros(self._count.shape), np.zeros(self._count.shape)
        beyond_line[cells] = np.log(_medians(seconds / _along(self._line, requests, rows), held))
        trust[cells] = weight
        lent = self._lend_over_requests @ (trust * beyond_line) @ self._lend_over_widths
        lenders = self._lend_over_requests @ trust @ self._lend_over_widths
        self._residual = trust * beyond_line + (1.0 - trust) * lent / (lenders + 0.5)

    def _samples_to_trust(self) -> float:
        """Samples at which a cell's own median, by its noise, is as good as what its surroundings say."""
        return 1.0 + 1.57 * (self._noise / _BEND) ** 2  # pi / 2: the variance of a median over that of a mean


def bucket(requests: int) -> int:
    """Index of the grid bucket that holds this many requests."""
    return bisect_right(_BUCKETS, requests) - 1


def _along(line: Floats, requests: Floats | float, rows: Floats | float) -> Floats | float:
    """The line's seconds, elementwise."""
    return line[0] + line[1] * requests + line[2] * rows  # type: ignore[no-any-return]


def _medians(values: Floats, held: npt.NDArray[np.int64]) -> Floats:
    """Median of the first ``held`` of each row of values."""
    kept = np.where(np.arange(values.shape[1]) < held[:, None], values, np.inf)
    medians: Floats = np.sort(kept, axis=1)[np.arange(len(held)), (held - 1) // 2]  # of two the lower, as below
    return medians


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
