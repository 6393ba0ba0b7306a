"""What is said of two servers' rollouts follows from the tokens, the ends and the log-probabilities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang_das.engine.comparison import LOGPROB_TOLERANCE, NOTHING, Comparison, Outcome, Rollout, compare, judge

TOKENS = st.lists(st.integers(0, 3), max_size=8)


def rollout(tokens, *, name="one", logprobs=None, top=None, finish="stop"):
    return Rollout(name, tokens, logprobs, top, finish, "".join(chr(ord("a") + token) for token in tokens))


@given(TOKENS, TOKENS)
def test_a_difference_is_where_the_first_token_differs(plain, other):
    comparison = compare([rollout(plain)], [rollout(other)])
    if plain == other:
        assert comparison.same
        return
    (difference,) = comparison.differences
    place = difference.place
    assert plain[:place] == other[:place]
    assert plain[place : place + 1] != other[place : place + 1]
    assert difference.context == plain[:place][-8:]
    assert difference.text == "".join(chr(ord("a") + token) for token in plain[:place])
    for side, tokens in ((difference.plain, plain), (difference.das, other)):
        assert side == (tokens[place] if place < len(tokens) else "end (stop)")


def test_another_reason_to_end_is_a_difference():
    comparison = compare([rollout([1, 2], finish="stop")], [rollout([1, 2], finish="length")])
    (difference,) = comparison.differences
    assert (difference.place, difference.plain, difference.das) == (2, "end (stop)", "end (length)")


def test_log_probabilities_are_compared_as_far_as_the_tokens_agree():
    plain = rollout([1, 2, 3], logprobs=[-1.0, -2.0, -3.0], top=[[(1, -1.0)], [(2, -2.0), (7, -2.1)], [(3, -3.0)]])
    comparison = compare([plain], [rollout([1, 7, 9], logprobs=[-1.25, -9.0, -9.0])])
    assert comparison.logprobs == 1
    assert comparison.logprob_gap == 0.25
    assert comparison.differences[0].near == [(2, -2.0), (7, -2.1)]
    assert "2 at -2.0000, 7 at -2.1000" in comparison.differences[0].describe()


def test_rollouts_are_compared_with_those_of_their_name():
    reference = [rollout([1], name="a"), rollout([2], name="b")]
    comparison = compare(reference, [rollout([2], name="b"), rollout([1], name="a"), rollout([2], name="a")])
    assert (comparison.compared, comparison.tokens) == (3, 3)
    assert [difference.name for difference in comparison.differences] == ["a"]


SAME = Comparison(4, 40, [], 20, 1e-6)
APART = Comparison(4, 40, [], 20, 2 * LOGPROB_TOLERANCE)
DIFFERENT = compare([rollout([1])], [rollout([2])])


@pytest.mark.parametrize(
    ("plain", "das", "accepted", "outcome", "words"),
    [
        (SAME, SAME, 7, Outcome.IDENTICAL, "every rollout is the one"),
        (SAME, SAME, 0, Outcome.UNDECIDED, "no draft was accepted"),
        (SAME, DIFFERENT, 7, Outcome.DIFFERENT, "1 of 1 rollouts differ"),
        (SAME, DIFFERENT, 0, Outcome.DIFFERENT, "1 of 1 rollouts differ"),
        (SAME, APART, 7, Outcome.DIFFERENT, "log-probabilities are 0.002 apart"),
        (DIFFERENT, SAME, 7, Outcome.UNDECIDED, "plain decoding is not reproducible"),
        (DIFFERENT, DIFFERENT, 7, Outcome.UNDECIDED, "plain decoding is not reproducible"),
    ],
)
def test_the_outcome_follows_from_both_comparisons(plain, das, accepted, outcome, words):
    judged, text = judge(plain, das, accepted)
    assert judged == outcome
    assert words in text


def test_nothing_compared_shows_nothing():
    assert judge(NOTHING, NOTHING, 0)[0] == Outcome.UNDECIDED
