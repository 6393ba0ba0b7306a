"""History, ends and control of a running DAS server."""

import urllib.error

import pytest

from .support import EOS, body, prompts


def test_history_survives_a_flush(servers):
    das = servers("das")
    wanted = [body(prompt, temperature=0, max_new_tokens=64) for prompt in prompts(4, seed=5)]
    das.generate(wanted)
    problems = das.das()["problems"]
    das.post("/flush_cache")
    before = das.das()
    assert before["problems"] == problems
    das.generate(wanted)
    after = das.das()
    drafted, accepted = after["drafted"] - before["drafted"], after["accepted"] - before["accepted"]
    assert accepted > 0.8 * drafted > 0, "a greedy rollout repeats its predecessor"


def test_a_flush_with_finished_rollouts_starts_a_new_policy_version(servers):
    das = servers("das")
    das.generate([body(prompts(1, seed=6)[0], temperature=0)])
    before = das.das()["policy_version"]
    das.post("/flush_cache")
    das.post("/flush_cache")
    assert das.das()["policy_version"] == before + 1


def test_nothing_is_emitted_beyond_the_end(servers):
    plain, das = servers("plain"), servers("das")
    for limit in (1, 2, 3, 5, 17):
        wanted = [body(prompt, temperature=0.8, seed=i, max_new_tokens=limit) for i, prompt in enumerate(prompts(4))]
        answers = das.generate(wanted)
        assert [answer["output_ids"] for answer in answers] == plain.tokens(wanted)
        assert all(len(answer["output_ids"]) <= limit for answer in answers)
    for answer in answers:
        ids, reason = answer["output_ids"], answer["meta_info"]["finish_reason"]["type"]
        assert EOS not in ids[:-1]
        assert (reason == "stop") == (ids[-1] == EOS)


def test_requests_that_cannot_be_drafted_for_are_served_right(servers):
    # With its overlap scheduler the engine counts a token for the penalties one step late; synchronously it does not.
    plain, das = servers("plain-synchronous"), servers("das")
    special = [{"frequency_penalty": 0.7}, {"presence_penalty": 0.4}, {"repetition_penalty": 1.3}]
    wanted = [
        body(prompt, temperature=0.8, seed=i, **special[i % len(special)])
        for i, prompt in enumerate(prompts(8, seed=8))
    ]
    neighbours = [body(prompt, temperature=0.8, seed=90 + i) for i, prompt in enumerate(prompts(8))]
    together = [request for pair in zip(wanted, neighbours, strict=True) for request in pair]
    before = das.das()["accepted"]
    assert das.tokens(together) == plain.tokens(together)
    assert das.das()["accepted"] > before, "the neighbours were drafted for"


def test_every_request_says_what_was_drafted_for_it(servers):
    das = servers("das")
    das.generate([body(prompts(1, seed=9)[0], temperature=0, max_new_tokens=64)])
    answer = das.generate([body(prompts(1, seed=9)[0], temperature=0, max_new_tokens=64)])[0]
    figures = answer["meta_info"]["das"][0]
    assert figures["proposed"] >= figures["accepted"] > 0
    assert answer["meta_info"]["spec_verify_ct"] == figures["verify_steps"]
    assert answer["meta_info"]["completion_tokens"] == 1 + figures["verify_steps"] + figures["accepted"]


def test_drafting_can_be_switched_off_and_on(servers):
    das = servers("das")
    wanted = [body(prompt, temperature=0) for prompt in prompts(2, seed=10)]
    reference = das.tokens(wanted)
    das.post("/set_internal_state", {"server_args": {"das_enabled": 0}})
    off = das.das()
    assert off["state"] == "off (switched off at run time)"
    assert das.tokens(wanted) == reference
    assert das.das()["drafted"] == off["drafted"]
    das.post("/set_internal_state", {"server_args": {"das_enabled": 1}})
    assert das.tokens(wanted) == reference
    assert das.das()["drafted"] > off["drafted"]


def test_a_request_can_ask_for_no_drafts(servers):
    das = servers("das")
    request = body(prompts(1, seed=10)[0], temperature=0, custom_params={"das": {"draft": False}})
    assert das.generate([request])[0]["meta_info"]["das"][0]["proposed"] == 0


def test_short_prompts_make_no_problem(servers):
    das = servers("das")
    before = das.das()["problems"]
    das.generate([body([5, 6, 7], temperature=0)])
    assert das.das()["problems"] == before


def test_a_bad_switch_is_refused(servers):
    das = servers("das")
    with pytest.raises(urllib.error.HTTPError):
        das.post("/no_such_route")
    das.post("/set_internal_state", {"server_args": {"das_enabled": 7}})
    assert das.das()["state"] == "on"
