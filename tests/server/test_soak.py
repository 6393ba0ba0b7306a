"""Random mixed requests against the plain server, compared request by request, while the DAS server is disturbed."""

import contextlib
import math
import threading
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .soak import FEATURES, depends_on_retraction, log_probabilities, make_request, prompt_pool, tokens_and_text
from .support import body, prompts

TOLERANCE = 1e-4
NO_DRAFTS = {"das": {"draft": False}}
AT_ONCE = 48


def disturb(client, stop):
    """Pauses, retractions, flushes and switches of drafting, until told to stop. Returns how often each happened."""
    random = np.random.default_rng(3)
    counts = {}
    while not stop.wait(float(random.uniform(0.2, 1.0))):
        act = random.choice(["in_place", "retract", "switch"])
        counts[act] = counts.get(act, 0) + 1
        if act == "switch":
            for enabled in (0, 1):
                client.post("/set_internal_state", {"server_args": {"das_enabled": enabled}})
                stop.wait(0.05)
            continue
        client.post("/pause_generation", {"mode": act})
        try:
            if act == "retract":
                with contextlib.suppress(urllib.error.HTTPError):  # refused where a prefill is half done
                    client.post("/flush_cache")
        finally:
            client.post("/continue_generation")
    return counts


def test_soak(servers, soak_requests):
    plain, das = servers("plain-tight"), servers("das-tight")
    capacity = das.get("/v1/loads?include=all")["loads"][0]["max_total_num_tokens"]
    assert das.free_slots() == capacity
    pool = prompt_pool()
    requests = [make_request(number, pool) for number in range(soak_requests)]
    expected = plain.generate(requests, at_once=AT_ONCE)
    forgotten = [n for n, request in enumerate(requests) if depends_on_retraction(request) and retracted(expected[n])]
    for n in forgotten:
        expected[n] = plain.generate(requests[n : n + 1])[0]

    before, stop = das.das(), threading.Event()
    with ThreadPoolExecutor(1) as background:
        disturber = background.submit(disturb, das, stop)
        try:
            answers = das.generate(requests, at_once=AT_ONCE)
        finally:
            stop.set()
        counts = disturber.result()
    after = das.das()

    differ = [n for n in range(soak_requests) if not same(expected[n], answers[n])]
    assert not differ, [(requests[n], expected[n], answers[n]) for n in differ[:3]]
    assert after["state"] == "on"
    assert after["failures"] == 0
    assert set(counts) == {"in_place", "retract", "switch"}
    assert after["accepted"] - before["accepted"] > soak_requests, "too little was drafted for this to mean anything"
    kept = {feature: accepted(feature, requests, answers) for feature in FEATURES}
    assert min(kept.values()) > soak_requests / 500, f"too little was drafted right: {kept}"
    assert sum(map(retracted, answers)) > 0
    # A rollout that ended with a prefill, as one may after a retraction, is found within so many steps.
    das.generate([body(prompts(1)[0], temperature=0, max_new_tokens=80, ignore_eos=True, custom_params=NO_DRAFTS)])
    assert das.das()["live_rollouts"] == 0
    assert das.free_slots() == capacity
    assert "memory leak" not in das.log_text()


def retracted(answer):
    return answer["meta_info"]["num_retractions"]


def accepted(feature, requests, answers):
    """Drafts kept for requests that sample with a feature; each of them is drafted for."""
    figures = [
        answer["meta_info"]["das"]
        for request, answer in zip(requests, answers, strict=True)
        if feature in request["sampling_params"] and "das" in answer["meta_info"]
    ]
    assert {each["not_drafted"] for each in figures} == {None}
    return sum(each["accepted"] for each in figures)


def same(expected, answer):
    """Tokens, text and end equal; log-probabilities equal to tolerance."""
    if tokens_and_text(expected) != tokens_and_text(answer):
        return False
    a, b = log_probabilities(expected), log_probabilities(answer)
    return [token for token, _ in a] == [token for token, _ in b] and all(
        x is y is None or math.isclose(x, y, abs_tol=TOLERANCE) for (_, x), (_, y) in zip(a, b, strict=True)
    )
