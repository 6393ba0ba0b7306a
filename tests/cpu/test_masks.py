"""Masks of draft trees as the engine's attention backends read them."""

import warnings

import numpy as np
import torch
from sglang_das.engine.drafts import Drafts, DraftTree
from sglang_das.engine.rows import Rows


def trees():
    tokens = np.array([[5, 6, 7], [5, 6, 0], [0, 0, 0]], np.int32)
    parents = np.array([[-1, 0, -1], [-1, -1, -1], [-1, -1, -1]], np.int32)
    return DraftTree(Drafts(tokens, parents, np.zeros((3, 3), np.float32), np.array([3, 2, 0], np.int32)))


def test_the_full_mask_is_the_prefix_and_the_ancestors():
    with warnings.catch_warnings(action="ignore"):  # SGLang's own
        from sglang_das.engine.verify import full_mask, rows_mask

    tree, lengths = trees(), [4, 1, 7]
    ancestors = tree.ancestors()
    expected = [
        np.concatenate([np.ones((4, length), bool), seen], axis=1).ravel()
        for length, seen in zip(lengths, ancestors, strict=True)
    ]
    full = full_mask(tree, torch.tensor(lengths), sum(lengths))
    assert np.array_equal(full.numpy(), np.concatenate(expected))
    assert np.array_equal(rows_mask(Rows.of(tree, packed=False), full.device).numpy(), ancestors.ravel())
    packed = [seen[:size, :size].ravel() for seen, size in zip(ancestors, (4, 3, 1), strict=True)]
    assert np.array_equal(rows_mask(Rows.of(tree, packed=True), full.device).numpy(), np.concatenate(packed))
