"""Drafts of one step as plain numpy arrays: what the drafter proposes and what verification walks.

Knows neither SGLang nor torch, so that its rules are tested on their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Drafts:
    """Drafted nodes of n requests, at most `width - 1` each, parents before children."""

    tokens: NDArray[np.int32]
    """Drafted token ids, `[n, width - 1]`; 0 at unused nodes."""
    parents: NDArray[np.int32]
    """Column of a node's parent, `[n, width - 1]`; -1 under the root."""
    probabilities: NDArray[np.float32]
    """Probability that the path up to a node is what the target emits, `[n, width - 1]`."""
    sizes: NDArray[np.int32]
    """Nodes in use per request, `[n]`; the first ones."""

    @property
    def width(self) -> int:
        """Rows a request has in the verify forward: root and drafts."""
        return int(self.tokens.shape[1]) + 1

    @classmethod
    def none(cls, n: int) -> Drafts:
        """No drafts at all: plain decoding."""
        return cls(
            np.zeros((n, 0), np.int32), np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32), np.zeros(n, np.int32)
        )

    def cut(self, width: int, sizes: NDArray[np.int32]) -> Drafts:
        """The first `sizes[i]` nodes of each request, at `width`: any prefix of best-first order is a draft."""
        keep = width - 1
        return Drafts(
            self.tokens[:, :keep],
            self.parents[:, :keep],
            self.probabilities[:, :keep],
            np.minimum(sizes, keep).astype(np.int32),
        )

    def keep(self, kept: NDArray[np.bool_]) -> Drafts:
        """Only some of the nodes, closed up, at the same width.

        Args:
            kept: which nodes stay, `[n, width - 1]`; only used ones, and none without its parent.
        """
        order = np.argsort(~kept, axis=1, kind="stable")
        column = np.where(self.parents >= 0, np.take_along_axis(kept.cumsum(1) - 1, self.parents.clip(0), 1), -1)
        unused = ~np.take_along_axis(kept, order, 1)

        def move(values: NDArray[Any], fill: int) -> NDArray[Any]:
            moved = np.take_along_axis(values, order, 1)
            moved[unused] = fill
            return moved.astype(values.dtype, copy=False)

        return Drafts(
            move(self.tokens, 0),
            move(column.astype(np.int32), -1),
            move(self.probabilities, 0),
            kept.sum(1).astype(np.int32),
        )

    def widen(self, width: int) -> Drafts:
        """The same drafts with unused nodes up to verify width `width`."""
        more = width - self.width
        if not more:
            return self

        def pad(values: NDArray[Any], fill: int) -> NDArray[Any]:
            return np.pad(values, ((0, 0), (0, more)), constant_values=fill)

        return Drafts(pad(self.tokens, 0), pad(self.parents, -1), pad(self.probabilities, 0), self.sizes)


class DraftTree:
    """The links verification needs, derived from the parents; every array is `[n, width]`, node 0 the root."""

    def __init__(self, drafts: Drafts) -> None:
        """Derive depths; links and ancestors follow on demand."""
        self.drafts = drafts
        n, width = len(drafts.sizes), drafts.width
        self.depth: NDArray[np.int64] = np.zeros((n, width), np.int64)
        """Distance from the root.

        Unused nodes stay at 0: their rows are computed and thrown away, at a position that exists.
        """
        requests = np.arange(n)
        used = self.used()
        for node in range(1, width):
            parent = drafts.parents[:, node - 1] + 1
            self.depth[:, node] = np.where(used[:, node], self.depth[requests, parent] + 1, 0)

    def used(self) -> NDArray[np.bool_]:
        """Which nodes are root or drafted, `[n, width]`."""
        return self._used

    @cached_property
    def _used(self) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = np.arange(self.drafts.width) <= self.drafts.sizes[:, None]
        return result

    @cached_property
    def is_chain(self) -> bool:
        """Whether every drafted node hangs under the one before it."""
        columns = np.arange(-1, self.drafts.width - 2)
        return bool(np.all((self.drafts.parents == columns) | ~self.used()[:, 1:]))

    @cached_property
    def _links(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        n, width = self.depth.shape
        first_child = np.full((n, width), -1, np.int64)
        next_sibling = np.full((n, width), -1, np.int64)
        requests = np.arange(n)
        used = self.used()
        for node in range(width - 1, 0, -1):  # descending, so that a parent ends with its earliest child
            rows = requests[used[:, node]]
            parent = self.drafts.parents[rows, node - 1] + 1
            next_sibling[rows, node] = first_child[rows, parent]
            first_child[rows, parent] = node
        return first_child, next_sibling

    @property
    def first_child(self) -> NDArray[np.int64]:
        """A node's earliest child, -1 where it has none."""
        return self._links[0]

    @property
    def next_sibling(self) -> NDArray[np.int64]:
        """The next child of the same parent, -1 where there is none."""
        return self._links[1]

    def ancestors(self) -> NDArray[np.bool_]:
        """`[n, width, width]`: whether node j is node i or an ancestor of it (the engine's mask of the new rows)."""
        n, width = self.depth.shape
        mask = np.zeros((n, width, width), bool)
        requests = np.arange(n)
        mask[:, 0, 0] = True
        for node in range(1, width):
            parent = np.where(self.used()[:, node], self.drafts.parents[:, node - 1] + 1, 0)
            mask[:, node] = mask[requests, parent]
            mask[:, node, node] = True
        return mask
