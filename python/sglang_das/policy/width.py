"""Width of a verify step: how many rows every request takes, root included.

The engine verifies requests x W rows whatever each request drafted, so one width serves all. With d_i usable drafts
of path probabilities p_i1 >= p_i2 >= ..., width W is expected to emit

    tokens(W) = sum_i (1 + sum_{j <= min(d_i, W - 1)} p_ij)

and takes t(b, W) seconds (:mod:`.latency`). The best W maximises tokens(W) / t(b, W); W = 1 is plain decoding.

A cost never measured stays a guess, so now and then a step takes a neighbour of the best width instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .latency import bucket

Floats = npt.NDArray[np.float64]

_THIN = 4  # samples below which a neighbour's cost is tried soon
_THIN_EVERY = 8


@dataclass(frozen=True, slots=True)
class WidthChoice:
    """What a verify step does."""

    width: int
    """Rows per request, from the configured widths."""
    drafts: npt.NDArray[np.int32]
    """Drafted nodes each request verifies, int32 [n], each at most ``width - 1``."""
    tokens: float
    """Tokens the step is expected to emit over all requests, the certain one of each included."""
    seconds: float
    """Time the step is expected to take."""
    explored: bool
    """Whether this is a neighbour of the best width, taken to learn its cost."""


def expected_tokens(probabilities: npt.NDArray[np.float32], usable: npt.NDArray[np.int32]) -> Floats:
    """Expected tokens of the batch when every request may use k drafts, for k from 0 to K: float64 [K + 1].

    ``probabilities`` is float32 [n, K], ``usable`` int32 [n] the nodes each request really has.
    """
    requests, nodes = probabilities.shape
    used = np.arange(nodes, dtype=np.int32) < usable[:, None]
    tokens = np.empty(nodes + 1)
    tokens[0] = requests
    np.einsum("ij,ij->j", probabilities, used, out=tokens[1:], casting="unsafe")
    return np.cumsum(tokens, out=tokens)


class Explorer:
    """Decides, by counting steps, when to try a neighbour of the best width and which one."""

    def __init__(self, every: int) -> None:
        """One speculative step in ``every`` explores, more while a neighbour has hardly been measured."""
        self._every = every
        self._steps: dict[int, int] = {}
        self._turns: dict[int, int] = {}

    def neighbour(self, best: int, widest: int, requests: int, samples: npt.NDArray[np.int64]) -> int:
        """Column to take instead of ``best``, or ``best`` itself; ``widest`` is the last column that holds a draft."""
        at = bucket(requests)
        steps = self._steps[at] = self._steps.get(at, 0) + 1
        turn = self._turns.get(at, 0)
        above = best + 1 <= widest and (best == 0 or turn % 2 == 0)
        candidate = best + 1 if above else best - 1
        if not 0 <= candidate <= widest:
            return best
        if steps < (_THIN_EVERY if samples[candidate] < _THIN else self._every):
            return best
        self._steps[at], self._turns[at] = 0, turn + 1
        return candidate
