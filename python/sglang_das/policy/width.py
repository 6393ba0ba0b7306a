"""Which drafted nodes a verify step takes.

With drafts of path probabilities p_i1 >= p_i2 >= ..., a step that verifies the first d_i of each request is
expected to bring, in tokens weighed by what a token of request i is worth,

    value = sum_i w_i (1 + sum_{j <= d_i} p_ij)

and takes t(b, rows) seconds (:mod:`.latency`). The best step maximises value / t. No drafts at all is plain
decoding.

* *Uniform*: the engine verifies b x W rows whatever each request drafted. One width W serves all, and
  d_i = min(W - 1, drafts of i): slots that W leaves empty are filled for nothing.
* *Packed*: rows are sum_i (1 + d_i). The best m nodes of the whole batch are the m of largest w_i p_ij; best-first
  order makes them a prefix of every request's nodes. This is the price form of the policy: a node is worth it iff
  w_i p_ij >= (value / t) * dt / drows.

A cost never measured stays a guess, so now and then a step takes a neighbour of the best width instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .latency import LatencyModel, bucket

Floats = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int32]

_THIN = 4  # samples below which a neighbour is tried soon, every so many steps,
_THIN_EVERY = 8
_PROMISING = 0.9  # if by what is known it brings at least this share of the best value per second
_CANDIDATES = 64  # sizes of a packed step that are compared


@dataclass(frozen=True, slots=True)
class WidthChoice:
    """What a verify step does."""

    width: int
    """Rows per request, root included: uniform, one of the configured widths; packed, those of the widest request."""
    drafts: Counts
    """Drafted nodes each request verifies, int32 [n], each at most ``width - 1``."""
    tokens: float
    """Tokens the step is expected to emit over all requests, the certain one of each included."""
    seconds: float
    """Time the step is expected to take."""
    explored: bool
    """Whether this is a neighbour of the best choice, taken to learn its cost."""


class Explorer:
    """Decides, by counting steps, when to try a neighbour of the best width and which one."""

    def __init__(self, every: int) -> None:
        """One speculative step in ``every`` explores, more while a promising neighbour has hardly been measured."""
        self._every = every
        self._steps: dict[int, int] = {}
        self._turns: dict[int, int] = {}

    def neighbour(self, best: int, rate: Floats, requests: int, samples: npt.NDArray[np.int64]) -> int:
        """Width index to take instead of ``best``, or ``best`` itself.

        ``rate`` is the value per second expected of each width, up to the last that some draft could fill; ``samples``
        how often each was measured.
        """
        at = bucket(requests)
        steps = self._steps[at] = self._steps.get(at, 0) + 1
        turn = self._turns.get(at, 0)
        above = best + 1 < len(rate) and (best == 0 or turn % 2 == 0)
        candidate = best + 1 if above else best - 1
        if not 0 <= candidate < len(rate):
            return best
        soon = samples[candidate] < _THIN and rate[candidate] >= _PROMISING * rate[best]
        if steps < (_THIN_EVERY if soon else self._every):
            return best
        self._steps[at], self._turns[at] = 0, turn + 1
        return candidate


class WidthChooser:
    """Chooses the nodes of a step by value per second."""

    def __init__(self, widths: tuple[int, ...], latency: LatencyModel, explore_every: int, margin: float) -> None:
        """``widths`` are those a step may have; it speculates only for a gain in value per second above ``margin``."""
        self._widths = np.array(widths, np.int64)
        self._latency = latency
        self._explorer = Explorer(explore_every)
        self._margin = margin

    def uniform(
        self, probabilities: Probabilities, usable: Counts, weights: Floats | None, others: int = 0
    ) -> WidthChoice:
        """The best common width; each request may use its first ``usable`` nodes, ``weights`` default to one.

        ``others`` further requests are in the step without drafts, worth one each.
        """
        requests, longest = len(usable) + others, int(usable.max())
        probabilities = _only(probabilities[:, :longest], usable)
        value = _cumulative(probabilities, weights) + others
        widest = self._widest(longest)
        used = np.minimum(self._widths[: widest + 1] - 1, longest)
        times = self._latency.seconds(requests)[: widest + 1]
        rate = value[used] / times
        best = self._best(rate)
        column = self._explorer.neighbour(best, rate, requests, self._latency.samples(requests))
        return self._at_width(column, probabilities, usable, requests, explored=column != best)

    def widest(self, probabilities: Probabilities, usable: Counts, others: int = 0) -> WidthChoice:
        """The least width that takes every usable node, whatever it costs."""
        longest, requests = int(usable.max()), len(usable) + others
        probabilities = _only(probabilities[:, :longest], usable)
        return self._at_width(self._widest(longest), probabilities, usable, requests, explored=False)

    def packed(
        self, probabilities: Probabilities, usable: Counts, weights: Floats | None, others: int = 0
    ) -> WidthChoice:
        """The best set of nodes where every node costs one row; ``others`` as in :meth:`uniform`."""
        requests, longest = len(usable) + others, int(usable.max())
        probabilities = probabilities[:, :longest]
        worth = probabilities if weights is None else probabilities * weights.astype(np.float32)[:, None]
        ranked = np.sort(-worth[_first(usable, longest)])  # best first, negated
        nodes = len(ranked)
        sizes = np.linspace(0, nodes, min(nodes, _CANDIDATES) + 1).astype(np.int64)
        # Nodes of equal worth are taken all or none: which of them would come first is nobody's decision.
        sizes[1:] = ranked.searchsorted(ranked[sizes[1:] - 1], side="right")
        value = np.empty(nodes + 1)
        value[0] = requests if weights is None else weights.sum() + others
        np.negative(ranked[:nodes], out=value[1:])
        value = np.cumsum(value)[sizes]
        rate = value / self._latency.seconds_of_rows(requests, requests + sizes)
        best = self._best(rate)

        column = self._latency.column(1.0 + sizes[best] / requests)
        by_width = np.interp((self._widths[: self._widest(longest) + 1] - 1) * requests, sizes, rate)
        tried = self._explorer.neighbour(column, by_width, requests, self._latency.samples(requests))
        taken = int(sizes[best])
        if tried != column:
            taken = min(nodes, int((self._widths[tried] - 1) * requests))
        drafts = np.zeros(len(usable), np.int32)
        if taken:
            drafts = np.minimum((worth >= -ranked[taken - 1]).sum(axis=1, dtype=np.int32), usable)
        rows = requests + int(drafts.sum())
        return WidthChoice(
            width=int(drafts.max()) + 1,
            drafts=drafts,
            tokens=requests + float(_only(probabilities, drafts).sum()),
            seconds=float(self._latency.seconds_of_rows(requests, rows)),
            explored=tried != column,
        )

    def _widest(self, longest: int) -> int:
        return min(int(np.searchsorted(self._widths, longest + 1)), len(self._widths) - 1)

    def _best(self, rate: Floats) -> int:
        best = int(rate.argmax())
        return best if rate[best] > rate[0] * (1.0 + self._margin) else 0

    def _at_width(
        self, column: int, probabilities: Probabilities, usable: Counts, requests: int, *, explored: bool
    ) -> WidthChoice:
        width = int(self._widths[column])
        return WidthChoice(
            width=width,
            drafts=np.minimum(usable, np.int32(width - 1)),
            tokens=requests + float(probabilities[:, : width - 1].sum()),
            seconds=float(self._latency.seconds(requests)[column]),
            explored=explored,
        )


def _only(probabilities: Probabilities, usable: Counts) -> Probabilities:
    """Probabilities of the usable nodes, zero elsewhere."""
    return probabilities * _first(usable, probabilities.shape[1])


def _first(usable: Counts, nodes: int) -> npt.NDArray[np.bool_]:
    """Which of ``nodes`` nodes are usable: bool [n, nodes]."""
    return np.arange(nodes, dtype=np.int32) < usable[:, None]


def _cumulative(probabilities: Probabilities, weights: Floats | None) -> Floats:
    """Value of a step in which every request may use k nodes, for k from 0 to K: float64 [K + 1]."""
    value = np.empty(probabilities.shape[1] + 1)
    if weights is None:
        value[0] = len(probabilities)
        value[1:] = probabilities.sum(axis=0)
    else:
        value[0] = weights.sum()
        value[1:] = weights.astype(np.float32) @ probabilities
    return np.cumsum(value, out=value)
