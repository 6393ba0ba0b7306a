"""What the target knew: the likeliest tokens of the distributions that a step's tokens were drawn from.

The verify forward yields such a distribution at every node, and engines throw it away. Here it is learnt: at emitted
positions beside the token drawn from it, at drafted nodes that were not kept under the two tokens before. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.drafts import DraftTree

CELLS = 8
"""Tokens kept of a distribution: more add next to nothing, fewer cost accepted drafts."""


@dataclass(frozen=True)
class Known:
    """Distributions, each as its likeliest tokens."""

    ids: NDArray[np.int32]
    """Token ids, `[..., CELLS]`, likeliest first; -1 in unused cells."""
    probabilities: NDArray[np.float32]
    """Their probabilities, `[..., CELLS]`; 0 in unused cells."""

    @classmethod
    def none(cls, *shape: int) -> Known:
        """As many distributions of which nothing is known."""
        return cls(np.full((*shape, CELLS), -1, np.int32), np.zeros((*shape, CELLS), np.float32))

    def __getitem__(self, index: Any) -> Known:
        """Some of them, picked as from an array of distributions."""
        return Known(self.ids[index], self.probabilities[index])

    def put(self, index: Any, known: Known) -> None:
        """Overwrite some of them."""
        self.ids[index], self.probabilities[index] = known.ids, known.probabilities

    @classmethod
    def join(cls, parts: list[Known]) -> Known:
        """One after the other; none if there are no parts."""
        if not parts:
            return cls.none(0)
        return cls(np.concatenate([p.ids for p in parts]), np.concatenate([p.probabilities for p in parts]))


@dataclass(frozen=True, slots=True)
class Pending:
    """Distributions of tokens that a request has emitted and that are not learnt yet."""

    start: int
    """Index of the first of these tokens in the request's output."""
    known: Known
    """`[tokens, CELLS]`."""

    def of(self, first: int, count: int) -> Known:
        """Those of the output tokens `first` to `first + count`, with nothing known of tokens beyond its own."""
        if first == self.start and count == len(self.known.ids):
            return self.known
        wanted = Known.none(count)
        low, high = max(first, self.start), min(first + count, self.start + len(self.known.ids))
        if low < high:
            wanted.put(slice(low - first, high - first), self.known[low - self.start : high - self.start])
        return wanted


@dataclass(frozen=True)
class Rejected:
    """Drafted nodes that were not kept, request after request."""

    owners: NDArray[np.int64]
    """Whose they are, `[m]`."""
    nodes: NDArray[np.int64]
    """Their columns in the tree, `[m]`."""
    contexts: NDArray[np.int32]
    """The two tokens before the distribution at each, `[m, 2]`: the parent's and its own."""

    @classmethod
    def of(cls, tree: DraftTree, roots: NDArray[np.int64], kept: NDArray[np.bool_]) -> Rejected:
        """Those of a step.

        Args:
            tree: the step's draft tree, `[n, width]`.
            roots: the token at each root, `[n]`.
            kept: which drafted nodes were kept, `[n, width - 1]`.
        """
        owners, columns = np.nonzero(tree.used()[:, 1:] & ~kept)
        tokens = np.column_stack([roots, tree.drafts.tokens])
        parents = tree.drafts.parents[owners, columns] + 1
        contexts = np.column_stack([tokens[owners, parents], tokens[owners, columns + 1]])
        return cls(owners, columns + 1, contexts.astype(np.int32))
