"""Sample and match on recorded rollouts: a drafted path counts as far as it equals what was sampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.drafts import Drafts


def accept(drafts: Drafts, future: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which drafted nodes are kept, `[n, width - 1]`.

    Args:
        drafts: of n requests.
        future: the tokens that come next, `[n, at least width - 1]`, -1 beyond the end of a rollout.

    The walk starts at the root and goes on to the first child, in the draft's order, that is the next token.
    """
    n, nodes = drafts.tokens.shape
    kept = np.zeros((n, nodes), np.bool_)
    if not nodes:
        return kept
    used = np.arange(nodes) < drafts.sizes[:, None]
    walking = np.arange(n)
    at = np.full(n, -1, np.int64)
    for depth in range(nodes):
        agrees = drafts.tokens[walking] == future[walking, depth, None]
        agrees &= (drafts.parents[walking] == at[:, None]) & used[walking]
        goes_on = agrees.any(axis=1)
        if not goes_on.any():
            break
        walking, at = walking[goes_on], agrees[goes_on].argmax(axis=1)
        kept[walking, at] = True
    return kept


def depths(parents: NDArray[np.integer], sizes: NDArray[np.integer]) -> NDArray[np.int64]:
    """Depth of each drafted node, `[n, nodes]`: 1 under the root, 0 in unused cells."""
    n, nodes = parents.shape
    depth = np.zeros((n, nodes + 1), np.int64)
    rows = np.arange(n)
    for node in range(nodes):
        used = node < sizes
        depth[:, node + 1] = np.where(used, depth[rows, np.where(used, parents[:, node], -1) + 1] + 1, 0)
    return depth[:, 1:]
