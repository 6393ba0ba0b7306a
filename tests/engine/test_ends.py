"""A verify step is cut where plain decoding, token by token, would have ended the request."""

import re
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sglang_das.engine.ends import cut_at_ends
from sglang_das.engine.matching import Match

LETTERS = "abcde"


class Tokenizer:
    eos_token_id = 4
    additional_stop_token_ids = None

    def decode(self, tokens):
        return "".join(LETTERS[token] for token in tokens)


def request_with(*, output=(), ignore_eos=False, stop_token_ids=(), strings=(), patterns=()):
    return SimpleNamespace(
        output_ids=list(output),
        eos_token_ids=None,
        tokenizer=Tokenizer(),
        sampling_params=SimpleNamespace(
            ignore_eos=ignore_eos,
            stop_token_ids=set(stop_token_ids) or None,
            stop_strs=list(strings),
            stop_regex_strs=list(patterns),
            stop_str_max_len=max(map(len, strings), default=0),
            stop_regex_max_len=max(map(len, patterns), default=0),
        ),
    )


def plain_length(request, tokens):
    """What plain decoding emits of the tokens: one at a time, looking for an end in the whole text."""
    sampling, output = request.sampling_params, list(request.output_ids)
    for count, token in enumerate(tokens, 1):
        output.append(token)
        text = Tokenizer().decode(output)
        if any(stop in text for stop in sampling.stop_strs) or any(
            re.search(p, text) for p in sampling.stop_regex_strs
        ):
            return count
        if not sampling.ignore_eos and token in {Tokenizer.eos_token_id, *(sampling.stop_token_ids or ())}:
            return count
    return len(tokens)


def cut(request, tokens, width):
    path = np.full((1, width), -1, np.int32)
    path[0, : len(tokens)] = range(len(tokens))
    sampled = np.zeros((1, width), np.int64)
    sampled[0, : len(tokens)] = tokens
    return cut_at_ends(Match(path, np.array([len(tokens)], np.int32)), [request], sampled)


tokens = st.lists(st.integers(0, 4), min_size=1, max_size=8)
stops = st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=3)


@given(tokens, tokens, stops, st.sets(st.integers(0, 3), max_size=2), st.booleans())
def test_a_step_ends_where_plain_decoding_ends(before, emitted, strings, stop_token_ids, ignore_eos):
    request = request_with(strings=strings, stop_token_ids=stop_token_ids, ignore_eos=ignore_eos)
    before = before[: plain_length(request, before)]
    if plain_length(request, before) < len(before) or plain_length(request, [*before, 0]) <= len(before):
        before = []  # the request would have ended already
    request.output_ids = before
    matched = cut(request, emitted, width=9)
    expected = plain_length(request, emitted)
    assert matched.accept_lens.tolist() == [expected]
    assert matched.path[0].tolist() == [*range(expected), *[-1] * (9 - expected)]


def test_the_end_token_counts_before_a_stop_string_behind_it():
    request = request_with(strings=["bc"])
    assert cut(request, [0, 4, 1, 2], 4).accept_lens.tolist() == [2]


def test_the_stop_string_that_is_complete_first_counts():
    request = request_with(output=[0], strings=["cc", "ab"])
    assert cut(request, [1, 2, 2], 4).accept_lens.tolist() == [1]


def test_patterns_count_too():
    request = request_with(patterns=["c+d"])
    assert cut(request, [2, 2, 3, 0], 4).accept_lens.tolist() == [3]


def test_an_invalid_pattern_is_the_engines_business():
    request = request_with(patterns=["("])
    assert cut(request, [0, 1, 2], 4).accept_lens.tolist() == [3]


def test_only_the_row_that_ends_is_cut():
    path = np.array([[0, 1, 2], [0, 2, -1], [0, 1, 2]], np.int32)
    matched = Match(path, np.array([3, 2, 3], np.int32))
    sampled = np.array([[0, 4, 0], [4, 0, 0], [4, 1, 1]], np.int64)
    requests = [request_with(), request_with(), request_with(ignore_eos=True)]
    result = cut_at_ends(matched, requests, sampled)
    assert result.accept_lens.tolist() == [2, 1, 3]
    assert result.path.tolist() == [[0, 1, -1], [0, -1, -1], [0, 1, 2]]
