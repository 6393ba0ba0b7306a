"""The walk of sample and match: which of a step's drafts are kept, and what is emitted. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.drafts import DraftTree


@dataclass(frozen=True)
class Match:
    """What one verify step emits: row i emits the samples at nodes `path[i, :accept_lens[i]]`."""

    path: NDArray[np.int32]
    """Accepted nodes from the root on, `[n, width]`; -1 beyond."""
    accept_lens: NDArray[np.int32]
    """Emitted tokens per request, `[n]`: accepted drafts and the one sampled after them."""

    def flat_path(self) -> NDArray[np.int32]:
        """`path` as flat indices of `[n, width]`, `[n, width]`; -1 beyond."""
        n, width = self.path.shape
        return np.where(self.path >= 0, self.path + width * np.arange(n, dtype=np.int32)[:, None], -1).astype(np.int32)

    def accepted(self) -> NDArray[np.bool_]:
        """Which drafted nodes are kept, `[n, width - 1]`."""
        requests, levels = np.nonzero(self.path > 0)
        kept = np.zeros((self.path.shape[0], self.path.shape[1] - 1), bool)
        kept[requests, self.path[requests, levels] - 1] = True
        return kept

    def moves(self) -> bool:
        """Whether an accepted token's key and value stand in another slot than plain decoding would have used."""
        return bool(np.any((self.path >= 0) & (self.path != np.arange(self.path.shape[1]))))


def match(tree: DraftTree, sampled: NDArray[np.int64]) -> Match:
    """Walk from the root along the drafted children that equal the sampled tokens.

    Args:
        tree: the step's draft tree.
        sampled: the target's sample at every node, `[n, width]`.
    """
    n, width = sampled.shape
    path = np.full((n, width), -1, np.int32)
    path[:, 0] = 0
    drafts = tree.drafts
    requests = np.arange(n)
    current = np.zeros(n, np.int64)
    walking = np.ones(n, bool)
    accept_lens = np.ones(n, np.int32)
    for level in range(1, width):
        agrees = (
            walking[:, None]
            & tree.used()[:, 1:]
            & (drafts.parents + 1 == current[:, None])
            & (drafts.tokens == sampled[requests, current][:, None])
        )
        walking = agrees.any(axis=1)
        if not walking.any():
            break
        current = np.where(walking, agrees.argmax(axis=1) + 1, current)
        path[walking, level] = current[walking]
        accept_lens += walking
    return Match(path, accept_lens)
