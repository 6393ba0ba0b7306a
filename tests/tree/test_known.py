"""What the target knew: distributions beside tokens, given and read."""

import numpy as np
import pytest
from sglang_das import RolloutHistory, SuffixTree, step

TOKENS = np.array([1, 2, 3, 1, 2, 4])
IDS = np.stack([TOKENS, TOKENS + 10, TOKENS + 20], 1)
PROBABILITIES = np.array(
    [[0.5, 0.3, 0.0], [0.2, 0.6, 0.1], [1.0, 0, 0], [0.5, 0.25, 0.25], [0.9, 0.1, 0], [0.4, 0.6, 0]]
)


def test_distributions_are_read_beside_the_most_recent_occurrence() -> None:
    tree = SuffixTree()
    first = tree.sequence()
    first.append(TOKENS, IDS, PROBABILITIES.astype(np.float32))
    first.close()
    token, ids, probabilities = tree.latest([1, 2]) or pytest.fail("it occurs")
    assert (token, ids.dtype, probabilities.dtype) == (4, np.int32, np.float32)
    assert ids.tolist() == [14, 4]
    np.testing.assert_allclose(probabilities, [0.6, 0.4], atol=1 / 510)
    token, ids, _ = tree.latest([2, 3]) or pytest.fail("it occurs")
    assert (token, ids.tolist()) == (1, [1, 11, 21])
    # Where the token drawn was nearly certain nothing is kept.
    second = tree.sequence()
    second.append([8, 9], np.array([[8, 9], [9, 8]]), np.array([[0.5, 0.5], [0.96, 0.04]]))
    token, ids, _ = tree.latest([8]) or pytest.fail("it occurs")
    assert (token, ids.tolist()) == (9, [])
    assert tree.latest([9]) is None


def test_own_text_and_history_apart() -> None:
    history = RolloutHistory()
    other = history.rollout(1)
    other.append([5, 6], np.array([[5, 7], [6, 8]]), np.array([[128, 100], [100, 120]], np.uint8))
    other.close()
    rollout = history.rollout(1, context=[5, 9])
    rollout.append([5])
    own, past = rollout.latest(1)
    assert own is not None
    assert (own[0], own[1].tolist()) == (9, []), "nothing is known of a prompt"
    assert past is not None
    assert (past[0], past[1].tolist()) == (6, [8, 6])
    np.testing.assert_array_equal(past[2], np.array([120, 100], np.float32) / np.float32(255))
    assert rollout.latest(3) == (None, None)


def test_step_takes_distributions() -> None:
    trees = [SuffixTree(), SuffixTree()]
    sequences = [tree.sequence() for tree in trees for _ in range(2)]
    offsets = np.array([0, 2, 2, 5, 6])
    arguments = (np.full(4, 4), np.zeros(4), 4)
    step(sequences, TOKENS, offsets, *arguments, ids=IDS, probabilities=PROBABILITIES)
    step(sequences, np.full(4, 1), np.arange(5), *arguments)
    own, _ = sequences[2].latest(1)
    assert own is not None
    assert (own[0], own[1].tolist()) == (2, [2, 12])


def test_negative_ids_mark_unused_cells() -> None:
    tree = SuffixTree()
    sequence = tree.sequence()
    sequence.append([3, 4], np.array([[-1, -1], [-1, 6]], np.int32), np.array([[0.2, 0.2], [0.2, 0.3]]))
    sequence.close()
    found = tree.latest([3])
    assert found is not None
    assert found[1].tolist() == [6]


ROW = np.array([[1, 2]])


@pytest.mark.parametrize(
    ("ids", "probabilities", "error", "message"),
    [
        (ROW, None, ValueError, "probabilities is None: give ids and probabilities together"),
        (None, np.ones((1, 2)), ValueError, "ids is None: give ids"),
        (ROW, np.ones((1, 3)), ValueError, r"the shape of probabilities is \[1, 3\]: it must be that of ids, \[1, 2\]"),
        (
            np.ones((2, 2), int),
            np.ones((2, 2)),
            ValueError,
            "the number of rows of ids is 2: give a row for each",
        ),
        (np.ones(2, int), np.ones(2), ValueError, "the number of dimensions of ids is 1"),
        (ROW.astype(float), np.ones((1, 2)), TypeError, "ids has dtype float64: give an int32 or int64"),
        ([[1, 2]], np.ones((1, 2)), TypeError, "ids is of type list: give an int32 or int64"),
        (ROW, np.ones((1, 2), int), TypeError, "probabilities has dtype int64: give a float32, float64 or uint8"),
        (ROW, np.array([[0.5, 1.5]]), ValueError, r"probabilities\[0, 1\] is 1.5: it must be from 0 to 1"),
        (ROW, np.array([[np.nan, 0.5]]), ValueError, r"probabilities\[0, 0\] is NaN"),
        (np.array([[1, 1 << 24]]), np.full((1, 2), 0.5), ValueError, r"ids\[0, 1\] is 16777216: .* below 2\^24"),
        (np.array([[1, 1 << 40]]), np.full((1, 2), 0.5), ValueError, r"ids\[0, 1\] is 1099511627776: .* below 2\^24"),
        (np.array([[5, 5]]), np.full((1, 2), 0.5), ValueError, r"ids\[0, 1\] is 5: the row has that token already"),
        (np.ones((1, 9), int), np.full((1, 9), 0.1), ValueError, "ids has 9 columns: at most 8"),
    ],
)
def test_bad_distributions(
    ids: np.ndarray | None, probabilities: np.ndarray | None, error: type[Exception], message: str
) -> None:
    sequence = SuffixTree().sequence()
    with pytest.raises(error, match=message):
        sequence.append([7], ids, probabilities)
    with pytest.raises(error, match=message):
        step([sequence], [7], [0, 1], [4], [0.0], 4, ids=ids, probabilities=probabilities)
    assert len(sequence) == 0
