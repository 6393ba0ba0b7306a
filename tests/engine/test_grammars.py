"""A grammar is walked over draft trees: what it forbids is dropped, and it stands in the end where it stood before."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang_das.engine.drafts import Drafts
from sglang_das.engine.grammars import LateEnd, constrain, end_as_plain, reason_not_to_follow

LETTERS = 4
END = LETTERS


class Words:
    """Allows the letters of a few words and, behind a whole word, the end: a grammar of its simplest kind."""

    def __init__(self, words):
        self.words, self.accepted, self.finished = [tuple(word) for word in words], [], False

    def allowed(self):
        if self.is_terminated():
            return set()
        n, start = len(self.accepted), tuple(self.accepted)
        following = {word[n] for word in self.words if len(word) > n and word[:n] == start}
        return following | ({END} if start in self.words else set())

    def accept_token(self, token):
        assert token in self.allowed(), "the engine raises here, and some matchers are broken for good"
        self.accepted.append(token)

    def rollback(self, count):
        assert count > 0
        del self.accepted[len(self.accepted) - count :]

    def is_terminated(self):
        return END in self.accepted

    def allocate_vocab_mask(self, vocab_size, batch_size, device):
        import torch

        return torch.full((batch_size, (vocab_size + 31) // 32), -1, dtype=torch.int32)

    def fill_vocab_mask(self, mask, row):
        mask[row] = 0
        mask[row, 0] = sum(1 << token for token in self.allowed())


words = st.lists(st.lists(st.integers(0, LETTERS - 1), min_size=1, max_size=5), min_size=1, max_size=6)


@st.composite
def trees(draw, count, vocabulary=LETTERS + 1):
    width = draw(st.integers(1, 9))
    sizes = np.array([draw(st.integers(0, width - 1)) for _ in range(count)], np.int32)
    parents = np.full((count, width - 1), -1, np.int32)
    tokens = np.zeros((count, width - 1), np.int32)
    for i, size in enumerate(sizes):
        for node in range(size):
            parents[i, node] = draw(st.integers(-1, node - 1))
            tokens[i, node] = draw(st.integers(0, vocabulary - 1))
    probabilities = np.where(np.arange(width - 1) < sizes[:, None], np.arange(1, width) / 100, 0).astype(np.float32)
    return Drafts(tokens, parents, probabilities, sizes)


def paths(drafts, i):
    """Path and probability of every node, in order."""
    found = []
    for node in range(int(drafts.sizes[i])):
        path, at = [], node
        while at >= 0:
            path.append(int(drafts.tokens[i, at]))
            at = int(drafts.parents[i, at])
        found.append((tuple(path[::-1]), float(drafts.probabilities[i, node])))
    return found


def request_of(grammar, **sampling):
    return SimpleNamespace(grammar=grammar, sampling_params=SimpleNamespace(**{"ignore_eos": False, **sampling}))


@given(st.lists(st.none() | words, min_size=1, max_size=3).flatmap(lambda w: st.tuples(st.just(w), trees(len(w)))))
def test_drafts_are_what_the_grammar_allows(batch):
    grammars, drafts = batch
    requests = [request_of(None if each is None else Words(each)) for each in grammars]
    left, masks = constrain(drafts, requests, LETTERS + 1)
    assert left.width == drafts.width
    step = None
    if masks is not None:
        rows = np.arange(len(requests) * left.width).reshape(len(requests), left.width)
        step = requests[0].grammar or Words([])
        step = step.allocate_vocab_mask(LETTERS + 1, rows.size, "cpu")
        masks.put(step, rows)
    for i, (request, each) in enumerate(zip(requests, grammars, strict=True)):
        if each is None:
            assert paths(left, i) == paths(drafts, i)
            continue
        assert request.grammar.accepted == []
        # A path is allowed if some word begins with it; the end is never drafted.
        allowed = [(p, q) for p, q in paths(drafts, i) if any(p == tuple(word[: len(p)]) for word in each)]
        assert paths(left, i) == allowed
        if step is None:
            assert drafts.sizes[i] == 0
            continue
        for node, (path, _) in enumerate([((), 0), *allowed]):
            if drafts.sizes[i]:
                expected = Words(each)
                expected.accepted = list(path)
                bits = int(step[i * left.width + node, 0])
                assert {token for token in range(LETTERS + 1) if bits >> token & 1} == expected.allowed()


def chain(*tokens):
    size = len(tokens)
    return Drafts(
        np.array([tokens], np.int32),
        np.arange(-1, size - 1, dtype=np.int32)[None],
        np.ones((1, size), np.float32),
        np.array([size], np.int32),
    )


def test_a_grammar_that_is_over_leaves_drafts_alone():
    grammar = Words([[0]])
    grammar.accepted = [0, END]
    drafts, masks = constrain(chain(3, 3), [request_of(grammar)], LETTERS + 1)
    assert (drafts.sizes.tolist(), masks) == ([2], None)


def test_an_error_in_the_walk_leaves_the_matcher_where_it_was():
    grammar = Words([[0, 1, 2]])

    def fail(mask, row):
        if row == 2:
            raise RuntimeError("broken")
        Words.fill_vocab_mask(grammar, mask, row)

    grammar.fill_vocab_mask = fail
    with pytest.raises(RuntimeError, match="broken"):
        constrain(chain(0, 1, 2), [request_of(grammar)], LETTERS + 1)
    assert grammar.accepted == []


def test_a_token_that_the_matcher_refuses_in_spite_of_its_mask_is_dropped():
    grammar = Words([[0, 1, 2]])

    def accept(token):
        if token == 1:
            raise ValueError("not accepted")
        Words.accept_token(grammar, token)

    grammar.accept_token = accept
    drafts, _ = constrain(chain(0, 1, 2), [request_of(grammar)], LETTERS + 1)
    assert drafts.sizes.tolist() == [1]
    assert grammar.accepted == []


def test_with_ignore_eos_one_token_of_any_kind_follows_the_end():
    request, other = request_of(Words([[0, 1]]), ignore_eos=True), request_of(Words([[0]]))
    end_as_plain([request, other, request_of(None)], speculating=True)
    end_as_plain([request], speculating=True)
    late = request.grammar
    assert isinstance(late, LateEnd)
    assert isinstance(late.grammar, Words)
    assert isinstance(other.grammar, Words)
    for token in (0, 1, END):
        late.accept_token(token)
    assert not late.is_terminated()
    mask = late.allocate_vocab_mask(LETTERS + 1, 1, "cpu")
    late.fill_vocab_mask(mask, 0)
    assert mask.tolist() == [[-1]]
    late.accept_token(3)
    assert late.is_terminated()
    late.rollback(2)
    assert not late.is_terminated()
    assert late.grammar.accepted == [0, 1]
    # The node behind the end ends the request, and is never drafted.
    drafts, _ = constrain(chain(END, 3, 2), [request], LETTERS + 1)
    assert drafts.tokens[0, : drafts.sizes[0]].tolist() == [END]
    late.finished = True
    assert late.grammar.finished


def test_a_prefill_behind_the_end_ends_the_request():
    """After a retraction. The engine then asks for the end before it shows the grammar the prefill's token."""
    request = request_of(Words([[0]]), ignore_eos=True)
    end_as_plain([request], speculating=True)
    for token in (0, END):
        request.grammar.accept_token(token)
    assert not request.grammar.is_terminated()
    end_as_plain([request], speculating=False)
    assert request.grammar.is_terminated()


def test_a_grammar_that_cannot_roll_back_or_is_untested_is_not_followed():
    from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject

    class Forward(BaseGrammarObject):
        pass

    assert reason_not_to_follow(request_of(Words([[0]]))) is None
    assert reason_not_to_follow(request_of(None)) is None
    assert reason_not_to_follow(request_of(Forward())) == "grammar without rollback"
    untested = Words([[0]])
    untested.ll_matcher = object()
    assert reason_not_to_follow(request_of(untested)) == "llguidance grammar"
    wrapping = Words([[0]])
    wrapping.grammar = Forward()
    assert reason_not_to_follow(request_of(wrapping)) == "grammar without rollback"


def test_masks_of_an_unknown_form_are_not_followed():
    import torch

    grammar = Words([[0]])
    grammar.allocate_vocab_mask = lambda vocab_size, batch_size, device: torch.zeros(batch_size, vocab_size, dtype=bool)
    assert reason_not_to_follow(request_of(grammar)) == "grammar with unknown masks"
