"""`step` does what separate calls do, and the same every time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sglang_das import RolloutHistory, Sequence, SuffixTree, step


def batch(accepted: list[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    return np.array([token for tokens in accepted for token in tokens], np.int32), np.cumsum([0, *map(len, accepted)])


rounds = st.lists(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=3, max_size=3), min_size=1, max_size=12)


@given(rounds, st.sampled_from(["tree", "chain"]))
@settings(deadline=None)
def test_step_equals_separate_calls(rounds: list[list[list[int]]], shape: str) -> None:
    def requests(tree: SuffixTree) -> list[Sequence]:
        return [tree.sequence(context=[i, 1, 2]) for i in range(3)]

    together, apart = requests(SuffixTree()), requests(SuffixTree())
    max_nodes, floors = np.array([0, 3, 8], np.int32), np.array([0, 0.02, 0.1], np.float32)
    for accepted in rounds:
        tokens, offsets = batch(accepted)
        drafted = step(together, tokens, offsets, max_nodes, floors, 8, shape)
        for i, sequence in enumerate(apart):
            sequence.append(accepted[i])
        for i, sequence in enumerate(apart):
            draft = sequence.draft(int(max_nodes[i]), float(floors[i]), shape)
            size = int(drafted[3][i])
            assert size == len(draft)
            for cells, values, unused in zip(
                drafted, (draft.tokens, draft.parents, draft.probabilities), (0, -1, 0), strict=False
            ):
                np.testing.assert_array_equal(cells[i, :size], values)
                assert (cells[i, size:] == unused).all()


def test_types_and_shapes() -> None:
    history = RolloutHistory()
    sequences = [history.rollout(problem, context=[1, 2, 1]) for problem in (4, 4, 5)]
    tokens, parents, probabilities, sizes = step(sequences, [1, 2, 1], [0, 1, 2, 3], [6, 6, 6], [0, 0, 0], 6)
    assert (tokens.dtype, parents.dtype, probabilities.dtype, sizes.dtype) == (np.int32, np.int32, np.float32, np.int32)
    assert tokens.shape == parents.shape == probabilities.shape == (3, 6)
    assert sizes.tolist() == [len(sequence.draft(6)) for sequence in sequences]


def test_the_same_calls_give_the_same_drafts() -> None:
    def run() -> list[bytes]:
        random = np.random.default_rng(3)
        tree = SuffixTree()
        sequences = [tree.sequence(context=random.integers(0, 50, 20)) for _ in range(8)]
        drafts = []
        for _ in range(60):
            tokens = random.integers(0, 6, 16).astype(np.int32)
            arrays = step(sequences, tokens, np.arange(9) * 2, np.full(8, 12), np.zeros(8), 12)
            drafts.append(b"".join(array.tobytes() for array in arrays))
        return drafts

    assert run() == run()


def test_a_long_prompt_is_taken_in_over_steps() -> None:
    prompt = np.random.default_rng(0).permutation(60_000)[:50_000]
    tree = SuffixTree()
    sequences = [tree.sequence(context=prompt), tree.sequence()]
    for at in range(20):
        tokens = np.array([prompt[at], 1], np.int32)
        drafted, *_ = step(sequences, tokens, [0, 1, 2], [1, 1], [0, 0], 1)
        # Its first 4096 tokens count from the beginning.
        assert drafted[0, 0] == prompt[at + 1]
    sequences[0].append(prompt[40_000:40_002])
    assert sequences[0].draft(1).tokens.tolist() == [prompt[40_002]]


def test_arrays_of_every_layout_give_the_same_drafts() -> None:
    random = np.random.default_rng(5)
    tokens, ids = random.integers(0, 40, 12), random.permutation(1000)[:96].reshape(12, 8)
    ids[3, 2:] = -1
    bytes_of = random.integers(0, 256, (12, 8)).astype(np.uint8)
    columns = (np.arange(0, 13, 3), np.full(4, 6), np.zeros(4), [0, 1, 2, 2], np.arange(4), np.arange(4) + 9)

    def run(form: Callable[[Any, type], Any], integer: type, real: type, byte: bool) -> list[bytes]:
        tree = SuffixTree()
        live = [tree.sequence() for _ in range(4)]
        probabilities = form(bytes_of, np.uint8) if byte else form(bytes_of / 255, real)
        offsets, most, floors, *couplings = columns
        counts, noise = (form(offsets, integer), form(most, integer)), [form(column, integer) for column in couplings]
        for _ in range(3):
            drafted = step(
                live,
                form(tokens, integer),
                *counts,
                form(floors, real),
                6,
                "tree",
                form(ids, integer),
                probabilities,
                *noise,
            )
        return [array.tobytes() for array in drafted]

    def plain(values: Any, dtype: type) -> Any:
        return np.array(values, dtype)

    def strided(values: Any, dtype: type) -> Any:
        return np.repeat(plain(values, dtype), 2, axis=-1)[..., ::2]

    def read_only(values: Any, dtype: type) -> Any:
        array = plain(values, dtype)
        array.flags.writeable = False
        return array

    expected = run(plain, np.int32, np.float32, byte=True)
    for form in (plain, strided, read_only):
        for integer in (np.int32, np.int64):
            for real in (np.float32, np.float64):
                for byte in (True, False):
                    assert run(form, integer, real, byte) == expected, (form, integer, real, byte)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory can be reset on Linux only")
@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_a_contiguous_array_is_not_copied(dtype: type) -> None:
    tokens = np.ones(20_000_000, dtype)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_kilobytes()
    with pytest.raises(ValueError, match="20000000"):
        SuffixTree().count(tokens)
    assert _peak_kilobytes() - before < tokens.nbytes // 1024 // 4


def _peak_kilobytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
