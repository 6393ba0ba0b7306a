"""The tree against a naive implementation, over interleaved appends with small alphabets."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_das import Draft, Sequence, SuffixTree

from .naive import NaiveTree


@st.composite
def worlds(draw: st.DrawFn) -> tuple[SuffixTree, dict[int, Sequence], NaiveTree]:
    """A tree after a random history, its running sequences, and the naive twin."""
    alphabet = draw(st.integers(1, 3))
    tokens = st.lists(st.integers(0, alphabet), min_size=1, max_size=6)
    max_depth = draw(st.sampled_from([4, 8, 64]))
    tree, naive, running = SuffixTree(max_depth), NaiveTree(max_depth), {}
    for action in draw(st.lists(st.sampled_from(["open", "append", "append", "together", "together", "close"]))):
        if action == "open" or not running:
            prompt = draw(tokens)
            running[naive.open(prompt)] = tree.sequence(context=prompt)
        elif action == "append":
            which, more = draw(st.sampled_from(sorted(running))), draw(tokens)
            running[which].append(more)
            naive.append(which, more)
        elif action == "together":
            # In lockstep, a text overtakes another that it follows: the case that needs leaf takeover.
            for more in draw(tokens):
                for which in running:
                    running[which].append([more])
                    naive.append(which, [more])
        elif action == "close":
            which = draw(st.sampled_from(sorted(running)))
            running.pop(which).close()
            naive.close(which)
    return tree, running, naive


def strings(naive: NaiveTree) -> set[tuple[int, ...]]:
    found = set()
    for text in naive.texts:
        output = [symbol for symbol in text.symbols if symbol < 1 << 31]
        for length in range(1, min(naive.max_depth, 7) + 1):
            found |= {tuple(output[at : at + length]) for at in range(len(output) - length + 1)}
    return found


@given(worlds())
@settings(deadline=None, max_examples=150)
def test_counts_and_match_lengths(world: tuple[SuffixTree, dict[int, Sequence], NaiveTree]) -> None:
    tree, running, naive = world
    tree.check_integrity()
    for which, sequence in running.items():
        assert sequence.match_length == naive.match_length(which)
    for which, sequence in list(running.items()):
        sequence.close()
        naive.close(which)
    tree.check_integrity()
    for string in strings(naive):
        assert tree.count(np.array(string)) == naive.count(list(string))


def children(draft: Draft, parent: int) -> dict[int, float]:
    rows = zip(draft.tokens, draft.parents, draft.probabilities, strict=True)
    return {int(token): float(probability) for token, above, probability in rows if above == parent}


@given(worlds(), st.integers(1, 12))
@settings(deadline=None, max_examples=150)
def test_drafts(world: tuple[SuffixTree, dict[int, Sequence], NaiveTree], max_tokens: int) -> None:
    _, running, naive = world
    for which, sequence in running.items():
        draft = sequence.draft(max_tokens=200)
        expected = naive.first_probabilities(which)
        first = children(draft, -1)
        assert first.keys() == expected.keys()
        np.testing.assert_allclose([first[token] for token in expected], list(expected.values()), rtol=1e-4)
        # A smaller draft is the beginning of a larger one; probabilities never rise; parents come first.
        shorter = sequence.draft(max_tokens=max_tokens)
        for name in ("tokens", "parents", "probabilities"):
            np.testing.assert_array_equal(getattr(shorter, name), getattr(draft, name)[:max_tokens])
        assert (np.diff(draft.probabilities) <= 0).all()
        assert (draft.parents < np.arange(len(draft))).all()
        # The chain takes the best child after each other, and a floor on the probability only cuts.
        chain = sequence.draft(max_tokens=max_tokens, shape="chain")
        assert (chain.parents == np.arange(len(chain)) - 1).all()
        assert len(chain) == 0 or chain.tokens[0] == draft.tokens[0]
        floor = float(np.median(draft.probabilities)) if len(draft) else 0.5
        cut = sequence.draft(max_tokens=200, min_probability=floor)
        assert len(cut) == (draft.probabilities >= np.float32(floor)).sum()
