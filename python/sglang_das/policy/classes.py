"""Length model: how long will this rollout be, judged by its problem's history and by how far it already is.

Rollouts fall into three classes by final length L: Short (L < t1), Medium (t1 <= L < t2), Long (L >= t2). The
thresholds are quantiles of the lengths seen lately. A rollout starts in the likeliest class of its problem and is
judged again at every step (arXiv 2511.13841, section 4.2.3):

    Init_r = argmax_c P(L in c | problem),      Class_r = argmax_c P(L in c | L > tokens so far, Init_r).

Not every length is known. An aborted rollout, one still running, and one that hit ``max_new_tokens`` were *at
least* as long as seen, so all probabilities come from the product-limit (Kaplan-Meier) estimate

    S(x) = P(L > x) = prod over ends at y <= x of (1 - ends at y / rollouts at risk at y),

where a rollout is at risk at y if it was seen both before and at y: one that was resumed at g tokens counts only
beyond g. One imagined rollout that never ends is always at risk. It keeps S positive, and makes "no evidence" mean
Long: the first rollouts of a new problem speculate, and so does whatever outlives everything seen.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

SHORT, MEDIUM, LONG = 0, 1, 2
_UNKNOWN = 3  # initial class of a rollout none of whose siblings has ended: taken for Long, but no evidence about Long
CLASS_NAMES = ("short", "medium", "long")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Classes = npt.NDArray[np.int8]

_ENOUGH = 8  # rollouts seen before thresholds mean anything; until then every rollout is Long
_BORROWED = 4.0  # weight, in rollouts, of all other initial classes in P(class | tokens so far, initial class)
_FREE = -1


class Survival:
    """Product-limit estimate of P(L > x)."""

    def __init__(self, entries: Ints, lengths: Ints, ended: Bools, weights: Floats | None = None) -> None:
        """Rollouts were watched from ``entries`` (exclusive) to ``lengths`` tokens, all of shape [n].

        ``ended`` marks the lengths that are final; the others are lower bounds. ``weights`` defaults to ones. A rollout
        not watched for a single token says nothing and is left out.
        """
        if weights is None:
            weights = np.ones(len(lengths))
        watched = lengths > entries
        entries, lengths, ended, weights = entries[watched], lengths[watched], ended[watched], weights[watched]
        order = np.lexsort((~ended, lengths))  # at equal length the ended come first: the others were still at risk
        weight = weights[order]
        self._lengths = lengths[order]
        by_entry = np.argsort(entries, kind="stable")
        entering = np.append(_sum_to_the_right(weights[by_entry]), 0.0)
        not_yet_watched = entering[np.searchsorted(entries[by_entry], self._lengths, side="left")]
        at_risk = 1.0 + _sum_to_the_right(weight) - not_yet_watched
        self._values = np.append(1.0, np.cumprod(1.0 - np.where(ended[order], weight, 0.0) / at_risk))

    def beyond(self, x: npt.ArrayLike) -> Floats:
        """P(L > x), elementwise."""
        values: Floats = self._values[np.searchsorted(self._lengths, x, side="right")]
        return values

    def quantile(self, q: float) -> int:
        """Least length x seen with P(L <= x) >= q; the greatest seen if the evidence ends earlier, 0 without any."""
        reached = int(np.searchsorted(1.0 - self._values[1:], q - 1e-9, side="left"))
        return int(self._lengths[min(reached, len(self._lengths) - 1)]) if len(self._lengths) else 0


def _sum_to_the_right(values: Floats) -> Floats:
    return np.cumsum(values[::-1])[::-1]


class _Records:
    """A ring of rollouts as they were seen: where we came in, how long they got, whether they ended there."""

    def __init__(self, capacity: int) -> None:
        self.entries = np.zeros(capacity, np.int64)
        self.lengths = np.zeros(capacity, np.int64)
        self.ended = np.zeros(capacity, np.bool_)
        self.initial = np.zeros(capacity, np.int8)
        self.added = 0

    def add(self, entry: int, length: int, ended: bool, initial: int) -> None:
        at = self.added % len(self.lengths)
        self.entries[at], self.lengths[at], self.ended[at], self.initial[at] = entry, length, ended, initial
        self.added += 1

    def __len__(self) -> int:
        return min(self.added, len(self.lengths))


class LengthModel:
    """Classes of the live rollouts, learned from those that are over."""

    def __init__(self, short_quantile: float, long_quantile: float, history: int, pool: int, max_problems: int) -> None:
        """Start without evidence: everything is Long.

        Args:
            short_quantile: quantile of recent lengths that makes the threshold t1.
            long_quantile: the same for t2.
            history: rollouts remembered per problem.
            pool: rollouts remembered over all problems.
            max_problems: problems remembered; the least recently used leaves first.
        """
        self._quantiles = (short_quantile, long_quantile)
        self._history = history
        self._max_problems = max_problems
        self._problems: OrderedDict[int, _Records] = OrderedDict()
        self._pool = _Records(pool)
        self.thresholds = (0, 0)
        self._table = np.full((4, 1), LONG, np.int8)  # [initial class, tokens so far] -> class
        self._table_known = False
        self._next_refresh = _ENOUGH
        self._free: list[int] = []
        self._problem = np.full(0, _FREE, np.int64)
        self._entry = np.zeros(0, np.int64)
        self._cap = np.zeros(0, np.int64)
        self._generated = np.zeros(0, np.int64)
        self._initial = np.zeros(0, np.int8)
        self._open = np.zeros(0, np.bool_)

    def open(self, problem: int, max_new_tokens: int, generated: int = 0) -> int:
        """Admit a rollout that has ``generated`` of at most ``max_new_tokens`` tokens; returns its row."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._problem[row], self._entry[row], self._cap[row] = problem, generated, max_new_tokens
        self._generated[row], self._open[row] = generated, True
        self._remember(problem)
        self._initial[row] = self._class_of_problem(problem)
        return row

    def close(self, row: int, length: int, finished: bool) -> None:
        """A rollout is over at ``length`` tokens.

        ``finished`` says it ended there. A rollout that ended at its ``max_new_tokens`` was cut: its length counts as
        a lower bound, whatever ``finished`` says, for another one may be allowed more.
        """
        problem, entry = int(self._problem[row]), int(self._entry[row])
        ended = finished and length < self._cap[row]
        self._open[row] = False
        self._free.append(row)
        if length > entry:
            initial = int(self._initial[row])
            self._remember(problem).add(entry, length, ended, initial)
            self._pool.add(entry, length, ended, initial)
        if self._pool.added >= self._next_refresh:
            self._refresh()
        self._initial[self._siblings(problem)] = self._class_of_problem(problem)

    def classify(self, rows: Ints, generated: npt.NDArray[np.integer]) -> Classes:
        """Class of each live row, given its tokens so far: int8 [n]."""
        self._generated[rows] = generated
        short_below, long_from = self.thresholds
        likeliest = self._table[self._initial[rows], np.minimum(generated, self._table.shape[1] - 1)]
        cap = self._cap[rows]
        allowed = (cap >= short_below).view(np.int8) + (cap >= long_from).view(np.int8)
        classes: Classes = np.minimum(likeliest, allowed)
        return classes

    def remaining(self, rows: Ints) -> Ints:
        """Tokens each row may still generate, by its ``max_new_tokens``: int64 [n]."""
        left: Ints = self._cap[rows] - self._generated[rows]
        return left

    def require_open(self, rows: Ints) -> None:
        """Raise ValueError unless every row is open."""
        known = (rows >= 0) & (rows < len(self._open))
        if not (known.all() and self._open[rows].all()):
            closed = [int(row) for row, ok in zip(rows, known, strict=True) if not (ok and self._open[row])]
            raise ValueError(f"policy: rows {closed} are not open; open() returns rows, close() takes them back")

    @property
    def problems(self) -> int:
        """Problems remembered."""
        return len(self._problems)

    @property
    def rollouts(self) -> int:
        """Rollouts seen to their end or abortion."""
        return self._pool.added

    def _remember(self, problem: int) -> _Records:
        records = self._problems.get(problem)
        if records is None:
            records = self._problems[problem] = _Records(self._history)
            if len(self._problems) > self._max_problems:
                self._problems.popitem(last=False)
        self._problems.move_to_end(problem)
        return records

    def _siblings(self, problem: int) -> Ints:
        return np.flatnonzero(self._open & (self._problem == problem))

    def _class_of_problem(self, problem: int) -> int:
        """Likeliest class of a new rollout of this problem; the running ones count as at least this long."""
        records, running = self._problems[problem], self._siblings(problem)
        seen = len(records)
        if not self._table_known or not records.ended[:seen].any():
            return _UNKNOWN
        survival = Survival(
            np.concatenate((records.entries[:seen], self._entry[running])),
            np.concatenate((records.lengths[:seen], self._generated[running])),
            np.concatenate((records.ended[:seen], np.zeros(len(running), np.bool_))),
        )
        return int(_likeliest(survival, np.zeros(1, np.int64), self.thresholds)[0])

    def _refresh(self) -> None:
        """Thresholds and the class table, from the pool. Done seldom once the pool is large: it then moves slowly."""
        seen = len(self._pool)
        self._next_refresh = self._pool.added + 1 + seen // 32
        entries, lengths = self._pool.entries[:seen], self._pool.lengths[:seen]
        ended, initial = self._pool.ended[:seen], self._pool.initial[:seen]
        overall = Survival(entries, lengths, ended)
        self.thresholds = (overall.quantile(self._quantiles[0]), overall.quantile(self._quantiles[1]))
        so_far = np.arange(self.thresholds[1] + 1)
        table = np.full((4, len(so_far)), LONG, np.int8)
        for start in (SHORT, MEDIUM, LONG):
            own = initial == start
            others = seen - int(own.sum())
            weights = np.where(own, 1.0, _BORROWED / max(others, _BORROWED))
            table[start] = _likeliest(Survival(entries, lengths, ended, weights), so_far, self.thresholds)
        self._table, self._table_known = table, True

    def _grow(self) -> None:
        old = len(self._open)
        new = max(64, old)
        self._problem = np.append(self._problem, np.full(new, _FREE, np.int64))
        self._entry, self._cap, self._generated = (
            np.append(array, np.zeros(new, np.int64)) for array in (self._entry, self._cap, self._generated)
        )
        self._initial = np.append(self._initial, np.zeros(new, np.int8))
        self._open = np.append(self._open, np.zeros(new, np.bool_))
        self._free.extend(range(old + new - 1, old - 1, -1))


def _likeliest(survival: Survival, so_far: Ints, thresholds: tuple[int, int]) -> Classes:
    """argmax_c P(L in c | L > so_far) by class; of equally likely classes the longer one."""
    short_below, long_from = thresholds
    alive = survival.beyond(so_far)
    not_short = survival.beyond(np.maximum(so_far, short_below - 1))
    is_long = survival.beyond(np.maximum(so_far, long_from - 1))
    mass = np.stack((is_long, not_short - is_long, alive - not_short))
    classes: Classes = (LONG - np.argmax(mass, axis=0)).astype(np.int8)
    return classes
