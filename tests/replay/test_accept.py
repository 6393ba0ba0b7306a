"""The accept rule against a walk written out node by node."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sglang_das.engine.drafts import Drafts
from sglang_das.replay.accept import accept, depths

WIDTH = 7


@st.composite
def requests(draw):
    """Nodes of a draft, each under an earlier one or the root, and what really comes."""
    size = draw(st.integers(0, WIDTH))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    tokens = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    future = draw(st.lists(st.integers(0, 2), max_size=WIDTH))
    return tokens, parents, future


def naive(tokens, parents, future):
    """Nodes that are kept: from the root on, the first child that is the next token."""
    kept, at = [], -1
    for token in future:
        children = [node for node, parent in enumerate(parents) if parent == at and tokens[node] == token]
        if not children:
            break
        at = children[0]
        kept.append(at)
    return kept


def packed(batch):
    n = len(batch)
    drafts = Drafts(
        np.zeros((n, WIDTH), np.int32), np.full((n, WIDTH), -1, np.int32), np.zeros((n, WIDTH), np.float32),
        np.array([len(tokens) for tokens, _, _ in batch], np.int32),
    )  # fmt: skip
    future = np.full((n, WIDTH), -1, np.int32)
    for row, (tokens, parents, coming) in enumerate(batch):
        drafts.tokens[row, : len(tokens)] = tokens
        drafts.parents[row, : len(tokens)] = parents
        future[row, : len(coming)] = coming
    return drafts, future


@given(st.lists(requests(), min_size=1, max_size=5))
def test_accepts_what_the_walk_accepts(batch):
    kept = accept(*packed(batch))
    assert [np.flatnonzero(row).tolist() for row in kept] == [sorted(naive(*request)) for request in batch]


@given(st.lists(requests(), min_size=1, max_size=5))
def test_depth_is_one_more_than_that_of_the_node_above(batch):
    drafts, _ = packed(batch)
    for (_, parents, _), row in zip(batch, depths(drafts.parents, drafts.sizes), strict=True):
        expected = []
        for parent in parents:
            expected.append(1 if parent < 0 else expected[parent] + 1)
        assert row.tolist() == expected + [0] * (WIDTH - len(expected))


def test_a_draft_of_the_right_tokens_is_kept_whole_and_padding_is_not():
    drafts, future = packed([([1, 2, 0], [-1, 0, 1], [1, 2, 0, 0]), ([], [], [0, 0])])
    assert accept(drafts, future).sum(axis=1).tolist() == [3, 0]


def test_nothing_is_kept_where_nothing_was_drafted():
    assert accept(Drafts.none(3), np.zeros((3, 0), np.int32)).shape == (3, 0)
