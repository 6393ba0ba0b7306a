"""Bad input gets an error that names the argument, the value and the remedy, and changes nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sglang_das import RolloutHistory, Sequence, SuffixTree, step

HUGE = 1 << 31


def closed(tree: SuffixTree) -> Sequence:
    sequence = tree.sequence()
    sequence.close()
    return sequence


def one_step(sequence: Sequence, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "tokens": np.array([1], np.int32),
        "offsets": np.array([0, 1]),
        "max_nodes": np.array([4], np.int32),
        "min_probability": np.array([0], np.float32),
        "width": 4,
    }
    step([sequence], **(arguments | changes))


CASES: list[tuple[Callable[[SuffixTree, Sequence], Any], type[Exception], str]] = [
    (lambda t, s: s.append([1, -1]), ValueError, r"tokens\[1\] is -1: token ids are from 0 to 2\^31 - 1"),
    (lambda t, s: s.append([HUGE]), ValueError, r"tokens\[0\] is 2147483648"),
    (lambda t, s: s.append([1 << 70]), ValueError, r"tokens\[0\] is 1180591620717411303424"),
    (lambda t, s: s.append(np.array([3, -7], np.int32)), ValueError, r"tokens\[1\] is -7"),
    (lambda t, s: s.append(np.array([3, -7], np.int64)), ValueError, r"tokens\[1\] is -7"),
    (lambda t, s: s.append(np.array([HUGE], np.uint32)), ValueError, r"tokens\[0\] is 2147483648"),
    (lambda t, s: s.append(np.array([1.0])), TypeError, r"tokens has dtype float64: give an int32"),
    (lambda t, s: s.append(np.array([True])), TypeError, r"tokens has dtype bool"),
    (lambda t, s: s.append(np.array(["a"])), TypeError, r"tokens has dtype <U1"),
    (lambda t, s: s.append(np.array([1], object)), TypeError, r"tokens has dtype object"),
    (lambda t, s: s.append(np.zeros((2, 2), np.int32)), ValueError, r"tokens has 2 dimensions"),
    (lambda t, s: s.append(np.array(3)), ValueError, r"tokens has 0 dimensions"),
    (lambda t, s: s.append([1, 2.5]), TypeError, r"tokens\[1\] is of type float: give an integer"),
    (lambda t, s: s.append(["x"]), TypeError, r"tokens\[0\] is of type str"),
    (lambda t, s: s.append(5), TypeError, r"tokens is of type int: give an int32"),
    (lambda t, s: s.append(None), TypeError, r"tokens is of type NoneType"),
    (lambda t, s: s.draft(max_tokens=-1), ValueError, r"max_tokens is -1: it must be from 0 to 1024"),
    (lambda t, s: s.draft(max_tokens=5000), ValueError, r"max_tokens is 5000"),
    (lambda t, s: s.draft(min_probability=1.5), ValueError, r"min_probability is 1.5: it must be from 0 to 1"),
    (lambda t, s: s.draft(min_probability=float("nan")), ValueError, r"min_probability is NaN"),
    (lambda t, s: s.draft(shape="bush"), ValueError, r"shape is 'bush': it must be 'tree' or 'chain'"),
    (lambda t, s: closed(t).append([1]), ValueError, r"the sequence is closed: open a new one"),
    (lambda t, s: closed(t).draft(), ValueError, r"the sequence is closed"),
    (lambda t, s: closed(t).match_length, ValueError, r"the sequence is closed"),
    (lambda t, s: t.sequence(context=[-2]), ValueError, r"context\[0\] is -2"),
    (lambda t, s: t.sequence(context=np.ones(3)), TypeError, r"context has dtype float64"),
    (lambda t, s: t.draft([-2]), ValueError, r"context\[0\] is -2"),
    (lambda t, s: t.draft([1], max_tokens=-3), ValueError, r"max_tokens is -3"),
    (lambda t, s: t.count([]), ValueError, r"tokens is empty: give at least one token"),
    (lambda t, s: t.count([1] * 65), ValueError, r"tokens has length 65: .* up to 64"),
    (lambda t, s: t.count([-1]), ValueError, r"tokens\[0\] is -1"),
    (lambda t, s: SuffixTree(max_depth=1), ValueError, r"max_depth is 1: it must be from 2 to 64"),
    (lambda t, s: SuffixTree(max_depth=65), ValueError, r"max_depth is 65"),
    (lambda t, s: RolloutHistory(window=0), ValueError, r"window is 0: it must be from 1"),
    (lambda t, s: RolloutHistory(max_bytes=-1), ValueError, r"max_bytes is -1"),
    (lambda t, s: RolloutHistory(max_depth=0), ValueError, r"max_depth is 0"),
    (lambda t, s: RolloutHistory(decay=0), ValueError, r"decay is 0: it must be above 0 and at most 1"),
    (lambda t, s: RolloutHistory(decay=1.5), ValueError, r"decay is 1.5"),
    (lambda t, s: RolloutHistory(decay=float("nan")), ValueError, r"decay is NaN"),
    (lambda t, s: RolloutHistory.load("/dev/null", window=0), ValueError, r"window is 0"),
    (lambda t, s: RolloutHistory.load("/dev/null"), ValueError, r"/dev/null: it ends too early"),
    (lambda t, s: RolloutHistory().rollout(1, weight=-1), ValueError, r"weight is -1: it must be from 0 to 16"),
    (lambda t, s: s.close(weight=17), ValueError, r"weight is 17: it must be from 0 to 16"),
    (lambda t, s: s.latest(0), ValueError, r"length is 0: it must be from 1"),
    (lambda t, s: t.latest([]), ValueError, r"tokens is empty"),
    (lambda t, s: t.weight([1] * 65), ValueError, r"tokens has length 65"),
    (lambda t, s: RolloutHistory().rollout(-1), ValueError, r"problem is -1: it must be from 0 to 2\^64 - 1"),
    (lambda t, s: RolloutHistory().rollout("p"), TypeError, r"problem is of type str: give an integer"),
    (lambda t, s: RolloutHistory().rollout(1, context=[-1]), ValueError, r"context\[0\] is -1"),
    (lambda t, s: one_step(s, tokens=[-1]), ValueError, r"tokens\[0\] is -1"),
    (lambda t, s: one_step(s, offsets=[0]), ValueError, r"len\(offsets\) is 1: .* plus one, 2"),
    (lambda t, s: one_step(s, offsets=[0, 2]), ValueError, r"offsets is \[0, 2\]: they must rise from 0 to .* 1"),
    (lambda t, s: one_step(s, offsets=[1, 1]), ValueError, r"offsets is \[1, 1\]"),
    (lambda t, s: one_step(s, max_nodes=[5]), ValueError, r"max_nodes\[0\] is 5: it must be from 0 to 4"),
    (lambda t, s: one_step(s, max_nodes=[1, 2]), ValueError, r"len\(max_nodes\) is 2: .* sequences, 1"),
    (lambda t, s: one_step(s, min_probability=[2.0]), ValueError, r"min_probability\[0\] is 2"),
    (lambda t, s: one_step(s, min_probability=[]), ValueError, r"len\(min_probability\) is 0"),
    (lambda t, s: one_step(s, min_probability=["x"]), TypeError, r"min_probability\[0\] is of type str: give a number"),
    (lambda t, s: one_step(s, width=0), ValueError, r"width is 0: it must be from 1 to 1024"),
    (lambda t, s: one_step(s, shape="bush"), ValueError, r"shape is 'bush'"),
    (lambda t, s: one_step(closed(t)), ValueError, r"the sequence is closed"),
]


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=[message for _, _, message in CASES])
def test_bad_input(call: Callable[[SuffixTree, Sequence], Any], error: type[Exception], message: str) -> None:
    tree = SuffixTree()
    sequence = tree.sequence(context=[9, 1, 2])
    sequence.append([1, 2, 1])
    before = (len(tree), len(sequence), sequence.draft().tokens.tolist())
    with pytest.raises(error, match=message):
        call(tree, sequence)
    assert (len(tree), len(sequence), sequence.draft().tokens.tolist()) == before
    tree.check_integrity()


@pytest.mark.parametrize(
    "tokens",
    [
        [5, 6, 5],
        (5, 6, 5),
        np.array([5, 6, 5], np.int32),
        np.array([5, 6, 5], np.int64),
        np.array([5, 6, 5], np.uint32),
        np.array([5, 0, 6, 0, 5])[::2],
        [np.int64(5), np.int32(6), 5],
    ],
    ids=["list", "tuple", "int32", "int64", "uint32", "strided", "mixed"],
)
def test_token_types(tokens: Any) -> None:
    tree = SuffixTree()
    sequence = tree.sequence()
    sequence.append(tokens)
    assert len(sequence) == 3
    assert sequence.draft(max_tokens=1).tokens.tolist() == [6]
    sequence.close()
    assert (tree.count([5]), tree.count(tokens)) == (2, 1)


def test_documented_empty_results() -> None:
    tree = SuffixTree()
    sequence = tree.sequence(context=[])
    assert len(sequence.draft()) == 0
    sequence.append([])
    sequence.append(np.array([], np.int32))
    sequence.append([3, 3])
    assert len(sequence.draft(max_tokens=0)) == 0
    assert len(tree.draft([])) == 0
    assert len(tree.draft([3], max_tokens=0)) == 0
    assert tree.count([4]) == 0
    sequence.close()
    sequence.close()
    assert sequence.closed
    assert len(sequence) == 2
    tokens, parents, probabilities, sizes = step([], [], [0], [], [], 4)
    assert tokens.shape == parents.shape == probabilities.shape == (0, 4)
    assert sizes.shape == (0,)


def test_a_failed_step_appends_nothing() -> None:
    tree = SuffixTree()
    first, second = tree.sequence(), tree.sequence()
    second.close()
    with pytest.raises(ValueError, match="closed"):
        step([first, second], [1, 2], [0, 1, 2], [1, 1], [0, 0], 4)
    assert (len(first), len(tree)) == (0, 0)
