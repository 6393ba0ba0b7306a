"""Survival: how long rollouts last, estimated from some that ended and some that were only seen to last so long.

Not every length is known. An aborted rollout, one still running, and one that hit ``max_new_tokens`` were *at
least* as long as seen. The product-limit (Kaplan-Meier) estimate uses both kinds:

    S(x) = P(L > x) = prod over ends at y <= x of (1 - ends at y / rollouts at risk at y),

where a rollout is at risk at y if it was seen both before and at y: one that was resumed at g tokens counts only
beyond g. One imagined rollout that never ends is always at risk. It keeps S positive, and makes "no evidence" mean
long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Survival:
    """Product-limit estimate of P(L > x)."""

    def __init__(self, entries: Numbers, lengths: Numbers, ended: Bools, weights: Floats | None = None) -> None:
        """Rollouts were watched from ``entries`` (exclusive) to ``lengths``, all of shape [n].

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
