"""What a DAS server says of itself, and how it is told what to do."""

import re
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest

from .support import body, prompts


def test_every_request_says_what_was_drafted_for_it(servers):
    das = servers("das")
    request = body(prompts(1, seed=9)[0], temperature=0, max_new_tokens=64)
    das.generate([request])
    meta = das.generate([request])[0]["meta_info"]
    figures = meta["das"]
    assert figures["proposed"] >= figures["accepted"] > 0
    assert figures["length_class"] in ("short", "medium", "long")
    assert 1 <= figures["mean_width"] <= 16
    assert figures["not_drafted"] is None
    assert re.fullmatch(r"(up to \d+|no) drafts\b.*", figures["why"]), figures["why"]
    assert meta["completion_tokens"] == 1 + figures["verify_steps"] + figures["accepted"]
    # The same under the engine's own names.
    assert meta["spec_verify_ct"] == figures["verify_steps"]
    assert meta["spec_num_correct_drafts"] == figures["accepted"]
    assert meta["spec_num_proposed_drafts"] == figures["proposed"]
    assert meta["spec_accept_rate"] == figures["accepted"] / figures["proposed"]
    assert meta["spec_accept_length"] == meta["completion_tokens"] / figures["verify_steps"]


def test_a_request_that_ends_with_its_prefill_has_no_figures(servers):
    """Also if it ends beside one that has."""
    wanted = [
        body(prompt, temperature=0, max_new_tokens=1 + i % 2, ignore_eos=True)
        for i, prompt in enumerate(prompts(16, seed=8))
    ]
    answers = servers("das").generate(wanted)
    assert [answer["meta_info"].get("das") is not None for answer in answers] == [False, True] * 8


def test_server_info_adds_up(servers):
    das = servers("das")
    before = das.das()
    answers = das.generate([body(prompt, temperature=0.8, seed=i) for i, prompt in enumerate(prompts(6, seed=9))] * 2)
    after = das.das()
    figures = [answer["meta_info"]["das"] for answer in answers]
    for total, single in (("drafted", "proposed"), ("accepted", "accepted"), ("request_steps", "verify_steps")):
        assert after[total] - before[total] == sum(item[single] for item in figures)
    assert after["rollouts"] - before["rollouts"] == 12
    assert after["state"] == "on"
    assert sum(after["policy"]["steps_by_width"].values()) > 0
    state = das.get("/server_info")["internal_states"][0]
    assert state["avg_spec_accept_length"] >= 1


def test_the_queue_is_known(servers):
    """Three times as many requests as slots: some wait, as few as may, and in the end none."""
    das = servers("das")
    wanted = [
        body(prompt, temperature=0.8, seed=1, max_new_tokens=400, ignore_eos=True) for prompt in prompts(24, seed=12)
    ]
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(das.generate, wanted, at_once=24)
        waiting = [das.das()["waiting"] for _ in iter(answers.done, True)]
    assert 0 < max(waiting) <= 16
    das.generate(wanted[:1])
    assert das.das()["waiting"] == 0


def test_the_log_says_what_is_on(servers):
    das = servers("das")
    das.generate([body(prompts(1, seed=9)[0], temperature=0)])
    log = das.log_text()
    assert len(re.findall(r"DAS is on; width up to 16, settings \{", log)) == 1


def test_the_log_tells_now_and_then_how_it_goes(servers):
    das = servers("das")  # whose interval is half a second
    for _ in range(2):
        das.generate([body(prompt, temperature=0.8, seed=i) for i, prompt in enumerate(prompts(8, seed=9))])
        time.sleep(0.6)
    assert re.search(
        r"DAS on: [\d.]+ tokens per step, \d+ of \d+ drafts accepted, mean width [\d.]+, drafting [\d.]+ ms of "
        r"CPU a step. The longest rollout: (up to \d+|no) drafts\b.*",
        das.log_text(),
    )


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
    figures = das.generate([request])[0]["meta_info"]["das"]
    assert figures["proposed"] == 0
    assert figures["not_drafted"] == "asked for none"
    assert figures["why"] == "no drafts: asked for none"


def test_a_request_can_name_its_problem(servers):
    das = servers("das")
    before = das.das()["problems"]
    first, second = prompts(2, seed=11)
    named = {"custom_params": {"das": {"problem": "the same"}}}
    das.generate([body(prompt, temperature=0, **named) for prompt in (first, second)])
    assert das.das()["problems"] == before + 1


def test_short_prompts_make_no_problem(servers):
    das = servers("das")
    before = das.das()["problems"]
    das.generate([body([5, 6, 7], temperature=0)])
    assert das.das()["problems"] == before


def test_what_is_wrong_is_refused_and_changes_nothing(servers):
    das = servers("das")
    with pytest.raises(urllib.error.HTTPError):
        das.post("/no_such_route")
    das.post("/set_internal_state", {"server_args": {"das_enabled": 7}})
    assert das.das()["state"] == "on"
