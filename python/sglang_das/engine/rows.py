"""Which rows of a verify forward stand for which nodes. numpy only.

Padded, every request has as many rows as the widest, which is what attention backends and graphs built for one width
need: what a draft leaves free is computed and thrown away. Packed, a node that nobody drafted has no row. The CPU
engine's attention takes any number of rows of each request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.drafts import DraftTree


@dataclass(frozen=True)
class Rows:
    """The rows of one verify forward, request by request, parents before children."""

    tree: DraftTree
    nodes: NDArray[np.int64]
    """The node of each row, as a flat index of `[n, width]`, `[rows]`."""
    packed: bool

    @classmethod
    def of(cls, tree: DraftTree, *, packed: bool) -> Rows:
        """The rows of a step."""
        nodes = np.flatnonzero(tree.used()) if packed else np.arange(tree.depth.size)
        return cls(tree, nodes, packed)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each request, `[n]`."""
        n, width = self.tree.depth.shape
        return self.tree.drafts.sizes.astype(np.int64) + 1 if self.packed else np.full(n, width, np.int64)

    @property
    def used(self) -> NDArray[np.int64]:
        """The rows that stand for a root or a drafted node."""
        return np.arange(len(self.nodes)) if self.packed else np.flatnonzero(self.tree.used())

    def visible(self) -> NDArray[np.bool_]:
        """What a request's rows see of each other, `[counts[i], counts[i]]` of each, one after the other, flat."""
        mask = self.tree.ancestors()
        if not self.packed:
            return mask.ravel()
        used = self.tree.used()
        return mask[used[:, :, None] & used[:, None, :]]

    def of_nodes(self, nodes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Row numbers of nodes given as flat indices, elementwise; -1 stays."""
        row_of = np.full(self.tree.depth.size, -1, np.int32)
        row_of[self.nodes] = np.arange(len(self.nodes), dtype=np.int32)
        return np.where(nodes >= 0, row_of[nodes], np.int32(-1))
