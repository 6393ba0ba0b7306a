"""Sampling features that look back on what was emitted are drafted for, and stay plain decoding's to the token."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from .support import EOS
from .test_sampling import requests_with

PENALTIES = [
    {"frequency_penalty": 0.7},
    {"presence_penalty": 0.4},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": -0.3, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    {"min_new_tokens": 30},
    {"min_new_tokens": 20, "stop_token_ids": [20, 30, 40], "ignore_eos": True},
    {"logit_bias": {"5": 4.0, "77": -50.0}},
    {"logit_bias": {"9": 3.0}, "repetition_penalty": 1.2, "min_new_tokens": 9},
]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["xy", "xz", "yz"]}, "c": {"type": "array"}},
    "required": ["a", "b", "c"],
}
GRAMMARS = [
    {"regex": "(ab|cd)+x"},
    {"json_schema": json.dumps(SCHEMA)},
    {"ebnf": 'root ::= "a" [b-f]* "z"'},
    {"regex": "[a-h]{40,60}"},
]


def assert_drafted(servers, wanted, *, kind="", passes=3):
    """Compares whole answers, pass after pass, so that each rollout has itself as history; drafts must be kept for
    every group of requests that sample alike. Returns plain decoding's answers.
    """
    plain, das = servers(f"plain{kind}"), servers(f"das{kind}")
    expected = plain.generate(wanted)
    accepted = dict.fromkeys(map(features, wanted), 0)
    for _ in range(passes):
        for request, reference, answer in zip(wanted, expected, das.generate(wanted), strict=True):
            assert answer["output_ids"] == reference["output_ids"], request
            assert answer["text"] == reference["text"]
            assert answer["meta_info"]["finish_reason"] == reference["meta_info"]["finish_reason"]
            figures = answer["meta_info"].get("das")
            if figures is not None:  # a rollout that ends with its prefill has none
                assert figures["not_drafted"] is None
                accepted[features(request)] += figures["accepted"]
    assert das.das()["state"] == "on"
    assert 0 not in accepted.values(), f"nothing was drafted right, so the comparison shows nothing: {accepted}"
    return expected


def features(request):
    """What a request samples with, but for its seed."""
    sampling = {k: v for k, v in request["sampling_params"].items() if k != "sampling_seed"}
    return json.dumps([sampling, request.get("custom_logit_processor")], sort_keys=True)


def name(options):
    return " ".join(f"{key}={str(value)[:24]}" for key, value in options.items())


@pytest.mark.parametrize("options", PENALTIES, ids=name)
def test_penalties(servers, options):
    assert_drafted(servers, requests_with(options, seed=51, count=4, samples=2))
    assert_drafted(servers, requests_with({**options, "temperature": 0}, seed=52, count=3, samples=1))


def test_penalties_of_all_kinds_beside_each_other_and_none(servers):
    filters = [{"top_k": 9}, {"top_p": 0.9}, {"min_p": 0.03}, {"temperature": 0}, {}]
    options = [{**penalty, **filters[i % len(filters)]} for i, penalty in enumerate([*PENALTIES, *PENALTIES[::-1]])]
    assert_drafted(servers, requests_with([*options, {}], seed=53, count=17, samples=2))


def test_a_least_length_is_kept(servers):
    expected = assert_drafted(servers, requests_with({"min_new_tokens": 30}, seed=54, temperature=1.2))
    assert all(len(answer["output_ids"]) >= 30 for answer in expected)
    assert not any(EOS in answer["output_ids"][:29] for answer in expected)


@pytest.mark.parametrize("options", GRAMMARS, ids=name)
def test_grammars(servers, options):
    assert_drafted(servers, requests_with(options, seed=55, count=4, samples=2))
    assert_drafted(servers, requests_with({**options, "temperature": 0}, seed=56, count=3, samples=1))


def test_texts_follow_their_grammars(servers):
    answers = assert_drafted(servers, requests_with(GRAMMARS, seed=57, count=8))
    for i, answer in enumerate(answers):
        pattern = ("(ab|cd)*(ab|cd|a|c|x)?", "", "a[b-f]*z?", "[a-h]*")[i // 3 % 4]
        assert not pattern or re.fullmatch(pattern, answer["text"])


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_token_follows_the_end_of_a_grammar_that_is_ignored(servers, temperature):
    options = [{"regex": "[ab]{12,14}"}, {"json_schema": json.dumps({"enum": ["abcabc", "abcabd"]})}]
    wanted = requests_with(options, seed=58, count=8, temperature=temperature, ignore_eos=True, max_new_tokens=30)
    expected = assert_drafted(servers, wanted)
    assert {answer["output_ids"].index(EOS) - len(answer["output_ids"]) for answer in expected} == {-2}


def test_one_token_follows_it_after_a_retraction_too(servers):
    """There the token behind the end is a prefill's, which the engine ends in another way than a drafted one."""
    plain, das = servers("plain"), servers("das")
    wanted = requests_with({"regex": "[ab]{2,3}"}, seed=66, count=100, samples=1, ignore_eos=True, max_new_tokens=30)
    expected, done = plain.tokens(wanted), threading.Event()

    def retract():
        while not done.is_set():
            das.post("/pause_generation", {"mode": "retract"})
            das.post("/continue_generation")

    with ThreadPoolExecutor(1) as background:
        retracting = background.submit(retract)
        try:
            answers = das.generate(wanted)
        finally:
            done.set()
        retracting.result()
    assert [answer["output_ids"] for answer in answers] == expected
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > len(wanted) / 2


def processed(requests, processor):
    return [{**request, "custom_logit_processor": processor} for request in requests]


def users_processor(*, follows_drafts):
    """A class the server cannot import, as clients send them: nothing of the last three tokens may come again."""
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    source = """
class NotAgain(CustomLogitProcessor):
    def __call__(self, logits, params):
        for row, given in enumerate(params):
            request = given["__req__"]
            recent = [*request.origin_input_ids, *request.output_ids][-given["span"] :]
            logits[row, recent] = -float("inf")
        return logits
"""
    made = {"__name__": "__main__", "CustomLogitProcessor": CustomLogitProcessor}
    exec(source, made)
    made["NotAgain"].follows_drafts = follows_drafts
    return made["NotAgain"].to_str()


def test_the_engines_logit_processors(servers):
    from sglang.srt.sampling.custom_logit_processor import (
        DeepseekOCRNoRepeatNGramLogitProcessor,
        DisallowedTokensLogitsProcessor,
    )

    forbidden = list(range(2, 60))
    disallow = requests_with({"custom_params": {"token_ids": forbidden}}, seed=60, count=2)
    no_repeat = requests_with({"custom_params": {"ngram_size": 2, "window_size": 40}}, seed=61, count=2)
    wanted = [
        *processed(disallow, DisallowedTokensLogitsProcessor.to_str()),
        *processed(no_repeat, DeepseekOCRNoRepeatNGramLogitProcessor.to_str()),
        *requests_with({}, seed=62, count=2),
    ]
    wanted = [{**request, "return_logprob": True} for request in wanted]
    expected = assert_drafted(servers, wanted, kind="-tight")
    assert not {token for answer in expected[:6] for token in answer["output_ids"]} & set(forbidden)
    for answer, again in zip(expected, servers("das-tight").generate(wanted), strict=True):
        values = [[value for value, *_ in a["meta_info"]["output_token_logprobs"]] for a in (answer, again)]
        assert values[1] == pytest.approx(values[0], abs=1e-4)


def test_a_users_logit_processor_says_whether_it_follows_drafts(servers):
    plain, das = servers("plain-tight"), servers("das-tight")
    params = {"custom_params": {"span": 3}}
    follows = processed(requests_with(params, seed=63, count=3), users_processor(follows_drafts=True))
    assert_drafted(servers, follows, kind="-tight")
    wanted = processed(requests_with(params, seed=64, count=3), users_processor(follows_drafts=False))
    expected = plain.tokens(wanted)
    for _ in range(2):
        answers = das.generate(wanted)
        assert [answer["output_ids"] for answer in answers] == expected
        figures = [answer["meta_info"]["das"] for answer in answers]
        assert {(each["not_drafted"], each["proposed"]) for each in figures} == {("custom logit processor", 0)}


def test_penalties_outlive_a_retraction(servers):
    """Where SGLang forgets what it has counted; the plain server has memory enough here."""
    plain, das = servers("plain"), servers("das-tight")
    options = [{"frequency_penalty": 0.5}, {"repetition_penalty": 1.2, "presence_penalty": 0.3}, {"min_new_tokens": 90}]
    wanted = requests_with(options, seed=65, count=14, samples=1, max_new_tokens=250)
    expected, retracted = plain.tokens(wanted), 0
    for _ in range(2):
        das.free_slots()  # at rest, the server becomes hopeful again
        answers = das.generate(wanted)
        assert [answer["output_ids"] for answer in answers] == expected
        retracted += sum(answer["meta_info"]["num_retractions"] for answer in answers)
    assert retracted > 0, "memory was not scarce"


def test_all_of_it_in_one_batch(servers):
    mixed = [
        {"regex": "[a-h]{40,60}", "frequency_penalty": 0.4, "top_k": 30},
        {"regex": "[a-p]+", "min_new_tokens": 25, "repetition_penalty": 1.1},
        {"json_schema": json.dumps(SCHEMA), "logit_bias": {"2": 3.0, "11": 2.0}},
        {"regex": "[a-h]+", "stop": ["ab", "cc", "hg"], "presence_penalty": 0.3, "temperature": 1.2},
        {},
        {"temperature": 0},
    ]
    assert_drafted(servers, requests_with(mixed, seed=59, count=12))
