"""Length model: how long will this rollout be, judged by its problem's history and by how far it already is.

**Classes.** Rollouts fall into three classes by final length L: Short (L < t1), Medium (t1 <= L < t2), Long (L >= t2).
The thresholds are quantiles of the lengths seen lately. A rollout starts in the likeliest class of its problem and is
judged again at every step (arXiv 2511.13841, section 4.2.3):

    Init_r = argmax_c P(L in c | problem),      Class_r = argmax_c P(L in c | L > tokens so far, Init_r).

A problem none of whose rollouts has ended is taken for Long.

**Remaining length.** Lengths of one problem are taken as L = m Z: m the problem's own mean, drawn to that of all
problems while it has few rollouts, Z of one distribution for all. So

    P(remaining > x | tokens so far l) = S_Z((l + x) / m) / S_Z(l / m),      0 from max_new_tokens on.

What outlives everything seen is expected to last about as long again: beyond the longest z, S_Z falls as 1 / z^2.

All estimates count lengths that are only lower bounds as such (:mod:`.survival`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .survival import Survival

SHORT, MEDIUM, LONG = 0, 1, 2
_UNKNOWN = 3  # initial class of a rollout none of whose siblings has ended: taken for Long, but no evidence about Long
CLASS_NAMES = ("short", "medium", "long")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int8]
Seen: TypeAlias = tuple[int, int, bool, int, float]
"""A rollout that is over: its tokens when it came, and when it went; whether it ended there; its initial class and the
mean of its problem then."""

_ENOUGH = 8  # rollouts seen before thresholds mean anything; until then every rollout is Long
_BORROWED = 4.0  # weight, in rollouts, of all the others where evidence is taken from few
_KEPT = 16  # rollouts of a problem that are handed on to another server
_HALF_LIFE = 32.0  # rollouts after which one of the same problem counts half: the model has moved on since
_POINTS = 24  # of the integral over remaining tokens
_GRID = np.append(0.0, np.geomspace(0.01, 100.0, 240))  # lengths, in means, at which S_Z is kept


class _Records:
    """A ring of rollouts as they were seen: where we came in, how long they got, whether they ended there."""

    def __init__(self, capacity: int) -> None:
        self.entries = np.zeros(capacity, np.int64)
        self.lengths = np.zeros(capacity, np.int64)
        self.ended = np.zeros(capacity, np.bool_)
        self.initial = np.zeros(capacity, np.int8)
        self.means = np.ones(capacity)
        self.added = 0

    def add(self, entry: int, length: int, ended: bool, initial: int, mean: float) -> None:
        at = self.added % len(self.lengths)
        self.entries[at], self.lengths[at], self.ended[at] = entry, length, ended
        self.initial[at], self.means[at] = initial, mean
        self.added += 1

    def __len__(self) -> int:
        return min(self.added, len(self.lengths))

    def newest(self, count: int) -> list[Seen]:
        """The last so many, oldest first."""
        at = np.arange(self.added - min(count, len(self)), self.added) % len(self.lengths)
        columns = (self.entries, self.lengths, self.ended, self.initial, self.means)
        return list(zip(*(column[at].tolist() for column in columns), strict=True))

    def weights(self) -> Floats:
        """How much each counts: the newest, siblings of the same visit mostly, one; those before them ever less."""
        age = (self.added - 1 - np.arange(len(self))) % len(self.lengths)
        weights: Floats = 0.5 ** (age / _HALF_LIFE)
        return weights

    def mean(self, weights: Floats) -> tuple[float, float]:
        """Tokens watched, and how many rollouts ended in them: their ratio is the mean length if ends come evenly."""
        seen = len(self)
        return float(weights @ (self.lengths[:seen] - self.entries[:seen])), float(weights @ self.ended[:seen])


class LengthModel:
    """Live rollouts, and what is to be expected of them, learned from those that are over."""

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
        self._shape = np.ones(len(_GRID))  # S_Z on _GRID
        self._mean = 1.0
        self.has_evidence = False
        self._next_refresh = _ENOUGH
        self._free: list[int] = []
        self._problem = np.zeros(0, np.int64)
        self._entry = np.zeros(0, np.int64)
        self._cap = np.zeros(0, np.int64)
        self._generated = np.zeros(0, np.int64)
        self._initial = np.zeros(0, np.int8)
        self._problem_mean = np.zeros(0)
        self._evidence = np.zeros(0)
        self._open = np.zeros(0, np.bool_)

    def open(self, problem: int, max_new_tokens: int, generated: int = 0) -> int:
        """Admit a rollout that has ``generated`` of at most ``max_new_tokens`` tokens; returns its row."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._problem[row], self._entry[row], self._cap[row] = problem, generated, max_new_tokens
        self._generated[row], self._open[row] = generated, True
        self._remember(problem)
        self._initial[row], self._problem_mean[row], self._evidence[row] = self._judge_problem(problem)
        return row

    def close(self, row: int, length: int, finished: bool) -> None:
        """A rollout is over at ``length`` tokens.

        ``finished`` says it ended there. A rollout that ended at its ``max_new_tokens`` was cut: its length counts as
        a lower bound, whatever ``finished`` says, for another one may be allowed more.
        """
        problem, entry = int(self._problem[row]), int(self._entry[row])
        self._open[row] = False
        self._free.append(row)
        if length > entry:
            ended = finished and length < self._cap[row]
            seen = (entry, length, bool(ended), int(self._initial[row]), float(self._problem_mean[row]))
            self._remember(problem).add(*seen)
            self._pool.add(*seen)
        if self._pool.added >= self._next_refresh:
            self._refresh()
        siblings = self._siblings(problem)
        if len(siblings):
            self._remember(problem)  # it may have been forgotten while they ran
            initial, mean, evidence = self._judge_problem(problem)
            self._initial[siblings], self._problem_mean[siblings], self._evidence[siblings] = initial, mean, evidence

    def classify(self, rows: Ints, generated: npt.NDArray[np.integer]) -> Classes:
        """Class of each live row, given its tokens so far: int8 [n]."""
        self._generated[rows] = generated
        short_below, long_from = self.thresholds
        likeliest = self._table[self._initial[rows], np.minimum(generated, self._table.shape[1] - 1)]
        cap = self._cap[rows]
        allowed = (cap >= short_below).view(np.int8) + (cap >= long_from).view(np.int8)
        classes: Classes = np.minimum(likeliest, allowed)
        return classes

    def left(self, rows: Ints) -> Ints:
        """Tokens each row may still generate, by its ``max_new_tokens``: int64 [n]."""
        left: Ints = self._cap[rows] - self._generated[rows]
        return left

    def lasts_beyond(self, rows: Ints, ahead: Floats) -> Floats:
        """P(a row generates more than this many further tokens): float64 [n, len(ahead)]."""
        so_far, mean = self._generated[rows][:, None], self._problem_mean[rows][:, None]
        lasting = self._shape_at((so_far + ahead) / mean) / self._shape_at(so_far / mean)
        return np.where(ahead < self.left(rows)[:, None], lasting, 0.0)

    def longest_allowed(self, rows: Ints) -> int:
        """The greatest ``max_new_tokens`` among the rows."""
        return int(self._cap[rows].max())

    def unknown_beyond(self, ahead: Floats, max_new_tokens: int) -> Floats:
        """P(a rollout of which nothing is known generates more than this many tokens), elementwise."""
        lasting: Floats = np.where(ahead < max_new_tokens, self._shape_at(ahead / self._mean), 0.0)
        return lasting

    def evidence(self, rows: Ints) -> Floats:
        """How far, of one, what is expected of each row rests on its own problem: float64 [n]."""
        evidence: Floats = self._evidence[rows]
        return evidence

    def expected(self, rows: Ints) -> Floats:
        """Tokens each row is expected to generate yet, at least one: float64 [n]."""
        ahead = np.geomspace(1.0, max(2.0, float(self.left(rows).max())), _POINTS)
        lasting = np.column_stack((np.ones(len(rows)), self.lasts_beyond(rows, ahead)))
        expected: Floats = (lasting[:, 1:] + lasting[:, :-1]) @ np.diff(ahead, prepend=0.0) / 2
        return np.clip(expected, 1.0, self.left(rows))

    def known(self) -> dict[int, list[Seen]]:
        """By problem, the least recently used first, what another model needs to go on from here."""
        return {problem: records.newest(_KEPT) for problem, records in self._problems.items() if len(records)}

    def go_on_from(self, known: Mapping[int, Sequence[Seen]]) -> None:
        """Take what another model knew for one's own, before the first rollout."""
        for seen in (seen for visit in zip_longest(*known.values()) for seen in visit if seen is not None):
            self._pool.add(*seen)
        for problem, rollouts in known.items():
            records = self._remember(problem)
            for seen in rollouts:
                records.add(*seen)
        if self._pool.added >= self._next_refresh:
            self._refresh()

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

    def _judge_problem(self, problem: int) -> tuple[int, float, float]:
        """Likeliest class and mean length of its rollouts, and how far, of one, its own evidence made them.

        Those running count as at least this long.
        """
        records, running = self._problems[problem], self._siblings(problem)
        seen = len(records)
        weights = records.weights()
        watched, ends = records.mean(weights)
        if not self.has_evidence or not ends:
            return _UNKNOWN, self._mean, 0.0
        running_since, running_at = self._entry[running], self._generated[running]
        survival = Survival(
            np.concatenate((records.entries[:seen], running_since)),
            np.concatenate((records.lengths[:seen], running_at)),
            np.concatenate((records.ended[:seen], np.zeros(len(running), np.bool_))),
            np.concatenate((weights, np.ones(len(running)))),
        )
        watched += int((running_at - running_since).sum())
        mean = (watched + _BORROWED * self._mean) / (ends + _BORROWED)
        initial = int(_likeliest(survival, np.zeros(1, np.int64), self.thresholds)[0])
        return initial, mean, ends / (ends + _BORROWED)

    def _shape_at(self, z: Floats) -> Floats:
        steps = (len(_GRID) - 2) / np.log(_GRID[-1] / _GRID[1])
        at = np.ceil(np.log(np.maximum(z, 1e-9) / _GRID[1]) * steps) + 1  # the grid point at or above z
        values: Floats = self._shape[np.clip(at, 0, len(_GRID) - 1).astype(np.int64)]
        return values

    def _refresh(self) -> None:
        """Thresholds and tables from the pool and all that runs. Seldom once the pool is large: it then moves slowly.

        Those that finish first are the short ones; without the running ones as lower bounds, an epoch would begin by
        taking every survivor for an exception.
        """
        seen, running = len(self._pool), np.flatnonzero(self._open)
        self._next_refresh = self._pool.added + 1 + seen // 32
        entries = np.concatenate((self._pool.entries[:seen], self._entry[running]))
        lengths = np.concatenate((self._pool.lengths[:seen], self._generated[running]))
        ended = np.concatenate((self._pool.ended[:seen], np.zeros(len(running), np.bool_)))
        initial = np.concatenate((self._pool.initial[:seen], self._initial[running]))
        overall = Survival(entries, lengths, ended)
        self.thresholds = (overall.quantile(self._quantiles[0]), overall.quantile(self._quantiles[1]))
        self._table = self._class_table(entries, lengths, ended, initial)
        self._mean = float((lengths - entries).sum()) / max(int(ended.sum()), 1)
        means = np.concatenate((self._pool.means[:seen], self._problem_mean[running]))
        means[initial == _UNKNOWN] = self._mean
        longest = float((lengths / means).max())
        outlived = np.minimum(1.0, longest / np.maximum(_GRID, 1e-9)) ** 2
        self._shape = Survival(entries / means, lengths / means, ended).beyond(_GRID) * outlived
        self.has_evidence = True

    def _class_table(self, entries: Ints, lengths: Ints, ended: npt.NDArray[np.bool_], initial: Classes) -> Classes:
        so_far = np.arange(self.thresholds[1] + 1)
        table = np.full((4, len(so_far)), LONG, np.int8)
        for start in (SHORT, MEDIUM, LONG):
            own = initial == start
            others = len(own) - int(own.sum())
            weights = np.where(own, 1.0, _BORROWED / max(others, _BORROWED))
            table[start] = _likeliest(Survival(entries, lengths, ended, weights), so_far, self.thresholds)
        return table

    def _grow(self) -> None:
        old = len(self._open)
        new = max(64, old)
        self._problem, self._entry, self._cap, self._generated = (
            np.append(array, np.zeros(new, np.int64))
            for array in (self._problem, self._entry, self._cap, self._generated)
        )
        self._initial = np.append(self._initial, np.zeros(new, np.int8))
        self._problem_mean = np.append(self._problem_mean, np.ones(new))
        self._evidence = np.append(self._evidence, np.zeros(new))
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
