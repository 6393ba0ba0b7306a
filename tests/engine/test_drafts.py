"""Draft trees and the walk over them, against a walk written out for one request."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_das.engine.drafts import Drafts, DraftTree
from sglang_das.engine.matching import match
from sglang_das.engine.rows import Rows

VOCABULARY = 4


@st.composite
def forests(draw):
    """Drafts of a few requests: every node hangs under an earlier one, siblings are distinct."""
    n, columns = draw(st.integers(1, 4)), draw(st.integers(0, 7))
    tokens = np.zeros((n, columns), np.int32)
    parents = np.full((n, columns), -1, np.int32)
    sizes = np.zeros(n, np.int32)
    for i in range(n):
        children = set()
        for j in range(draw(st.integers(0, columns))):
            edge = (draw(st.integers(-1, j - 1)), draw(st.integers(0, VOCABULARY - 1)))
            if edge in children:
                continue
            children.add(edge)
            parents[i, sizes[i]], tokens[i, sizes[i]] = min(edge[0], sizes[i] - 1), edge[1]
            sizes[i] += 1
        # Shifting a parent back may have made two siblings equal; keep the first of them only.
        seen, keep = set(), sizes[i]
        for j in range(sizes[i]):
            edge = (int(parents[i, j]), int(tokens[i, j]))
            if edge in seen:
                keep = j
                break
            seen.add(edge)
        sizes[i] = keep
        parents[i, keep:], tokens[i, keep:] = -1, 0
    return Drafts(tokens, parents, np.zeros(tokens.shape, np.float32), sizes)


def ancestors(drafts, i, node):
    """Nodes from the root to `node`."""
    path = [node]
    while path[-1] != 0:
        path.append(int(drafts.parents[i, path[-1] - 1]) + 1)
    return path[::-1]


@given(forests())
def test_depth_and_mask_follow_the_parents(drafts):
    tree = DraftTree(drafts)
    mask = tree.ancestors()
    for i, size in enumerate(drafts.sizes):
        for node in range(size + 1):
            path = ancestors(drafts, i, node)
            assert tree.depth[i, node] == len(path) - 1
            assert np.flatnonzero(mask[i, node]).tolist() == sorted(path)


@given(forests())
def test_links_list_every_child_once(drafts):
    tree = DraftTree(drafts)
    for i, size in enumerate(drafts.sizes):
        for node in range(drafts.width):
            children, child = [], tree.first_child[i, node]
            while child != -1:
                children.append(int(child))
                child = tree.next_sibling[i, child]
            expected = [j + 1 for j in range(size) if drafts.parents[i, j] + 1 == node] if node <= size else []
            assert children == expected


@given(forests())
def test_a_chain_is_recognised(drafts):
    chain = all(drafts.parents[i, j] == j - 1 for i, size in enumerate(drafts.sizes) for j in range(size))
    assert DraftTree(drafts).is_chain == chain


@settings(max_examples=300)
@given(forests(), st.data())
def test_match_keeps_exactly_the_agreeing_path(drafts, data):
    tree = DraftTree(drafts)
    n = len(drafts.sizes)
    sampled = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, VOCABULARY - 1), min_size=drafts.width, max_size=drafts.width),
                min_size=n,
                max_size=n,
            )
        )
    )
    result = match(tree, sampled)
    for i, size in enumerate(drafts.sizes):
        path = [0]
        while True:
            wanted = sampled[i, path[-1]]
            nodes = [
                j + 1 for j in range(size) if drafts.parents[i, j] + 1 == path[-1] and drafts.tokens[i, j] == wanted
            ]
            if not nodes:
                break
            path.append(nodes[0])
        assert result.accept_lens[i] == len(path)
        assert result.path[i].tolist() == path + [-1] * (drafts.width - len(path))
        assert np.flatnonzero(result.accepted()[i]).tolist() == sorted(node - 1 for node in path[1:])
    flat = result.flat_path()
    assert np.array_equal(flat >= 0, result.path >= 0)
    assert np.array_equal(flat[flat >= 0] % drafts.width, result.path[result.path >= 0])


@given(forests(), st.booleans())
def test_rows_are_the_nodes_request_by_request(drafts, packed):
    """Each row's node, what rows see of each other, and the way back from nodes to rows; packed, nothing is padded."""
    tree = DraftTree(drafts)
    rows = Rows.of(tree, packed=packed)
    sizes = (drafts.sizes + 1).tolist() if packed else [drafts.width] * len(drafts.sizes)
    nodes = [(i, node) for i, size in enumerate(sizes) for node in range(size)]
    assert rows.counts.tolist() == sizes
    assert [divmod(int(node), drafts.width) for node in rows.nodes] == nodes
    assert [nodes[row] for row in rows.used] == [(i, n) for i, n in nodes if n <= drafts.sizes[i]]
    seen = tree.ancestors()
    expected = [seen[i, :size, :size].ravel() for i, size in enumerate(sizes)]
    assert rows.visible().tolist() == np.concatenate(expected).tolist()
    flat = np.array([i * drafts.width + node for i, node in nodes] + [-1], np.int32)
    assert rows.of_nodes(flat).tolist() == [*range(len(nodes)), -1]


def test_a_cut_is_a_valid_draft():
    drafts = Drafts(
        np.array([[5, 6, 7]], np.int32),
        np.array([[-1, 0, -1]], np.int32),
        np.array([[0.9, 0.5, 0.1]], np.float32),
        np.array([3], np.int32),
    )
    cut = drafts.cut(3, np.array([5], np.int32))
    assert cut.width == 3
    assert cut.sizes.tolist() == [2]
    assert DraftTree(cut).depth.tolist() == [[0, 1, 2]]


def test_no_drafts_is_plain_decoding():
    tree = DraftTree(Drafts.none(3))
    assert tree.drafts.width == 1
    assert tree.is_chain
    assert tree.used().all()


@given(forests(), st.data())
def test_what_is_kept_keeps_its_paths_and_probabilities(drafts, data):
    numbers = 1 + np.arange(drafts.tokens.size, dtype=np.float32).reshape(drafts.tokens.shape)
    numbered = Drafts(drafts.tokens, drafts.parents, numbers, drafts.sizes)
    kept = np.zeros(drafts.tokens.shape, bool)
    for i, size in enumerate(drafts.sizes):
        for node in range(size):
            parent = drafts.parents[i, node]
            kept[i, node] = (parent < 0 or kept[i, parent]) and data.draw(st.booleans())
    left = numbered.keep(kept)
    assert left.width == drafts.width
    assert left.sizes.tolist() == kept.sum(1).tolist()
    for i in range(len(drafts.sizes)):
        old = np.flatnonzero(kept[i])
        for new, node in enumerate(old):
            assert left.probabilities[i, new] == numbered.probabilities[i, node]
            path = [left.tokens[i, at - 1] for at in ancestors(left, i, new + 1)[1:]]
            assert path == [drafts.tokens[i, at - 1] for at in ancestors(drafts, i, node + 1)[1:]]
        assert not left.tokens[i, len(old) :].any()
        assert (left.parents[i, len(old) :] == -1).all()
