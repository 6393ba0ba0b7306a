"""What the target knew, aligned with the tokens it belongs to."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sglang_das.engine.drafts import Drafts, DraftTree
from sglang_das.engine.known import CELLS, Known, Pending, Rejected


def numbered(count, start=0):
    """Distributions that can be told apart."""
    known = Known.none(count)
    known.ids[:, 0] = np.arange(start, start + count)
    known.probabilities[:, 0] = 0.5
    return known


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_pending_distributions_stay_with_their_tokens(start, length, first, count):
    found = Pending(start, numbered(length, start)).of(first, count)
    wanted = [index if start <= index < start + length else -1 for index in range(first, first + count)]
    assert found.ids[:, 0].tolist() == wanted
    assert found.probabilities[:, 0].tolist() == [0.5 if index >= 0 else 0.0 for index in wanted]
    assert (found.ids[:, 1:] == -1).all()


def test_nothing_is_joined_to_nothing():
    assert Known.join([]).ids.shape == (0, CELLS)
    assert Known.join([numbered(2), numbered(1, 7)]).ids[:, 0].tolist() == [0, 1, 7]


def test_rejected_nodes_come_with_the_two_tokens_before_them():
    #      root 90 -> 10 -> 11; 10 -> 12; root -> 13      root 91 -> 20 (kept), an unused node
    drafts = Drafts(
        tokens=np.array([[10, 11, 12, 13], [20, 0, 0, 0]], np.int32),
        parents=np.array([[-1, 0, 0, -1], [-1, -1, -1, -1]], np.int32),
        probabilities=np.zeros((2, 4), np.float32),
        sizes=np.array([4, 1], np.int32),
    )
    kept = np.array([[True, False, True, False], [True, False, False, False]])
    rejected = Rejected.of(DraftTree(drafts), np.array([90, 91]), kept)
    assert rejected.owners.tolist() == [0, 0]
    assert rejected.nodes.tolist() == [2, 4]
    assert rejected.contexts.tolist() == [[10, 11], [90, 13]]
