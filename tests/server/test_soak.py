"""Random mixed requests against the plain server, compared request by request, while the DAS server is disturbed."""

import contextlib
import math
import threading
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .soak import depends_on_retraction, log_probabilities, make_request, prompt_pool, tokens_and_text

TOLERANCE = 1e-4
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

    before, stop = das.das(), threading.Event()
    with ThreadPoolExecutor(1) as background:
        disturber = background.submit(disturb, das, stop)
        try:
            answers = das.generate(requests, at_once=AT_ONCE)
        finally:
            stop.set()
        counts = disturber.result()
    after = das.das()

    compared = [n for n in range(soak_requests) if comparable(requests[n], expected[n], answers[n])]
    assert len(compared) > 0.98 * soak_requests
    assert [n for n in compared if not same(expected[n], answers[n])] == []
    assert after["state"] == "on"
    assert after["failures"] == 0
    assert set(counts) == {"in_place", "retract", "switch"}
    assert after["accepted"] - before["accepted"] > soak_requests, "too little was drafted for this to mean anything"
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0
    assert after["live_rollouts"] == 0
    assert das.free_slots() == capacity
    assert "memory leak" not in das.log_text()


def comparable(request, expected, answer):
    """All but penalised requests that were retracted on one of the servers."""
    retracted = expected["meta_info"]["num_retractions"] + answer["meta_info"]["num_retractions"]
    return not (retracted and depends_on_retraction(request))


def same(expected, answer):
    """Tokens, text and end equal; log-probabilities equal to tolerance."""
    if tokens_and_text(expected) != tokens_and_text(answer):
        return False
    a, b = log_probabilities(expected), log_probabilities(answer)
    return [token for token, _ in a] == [token for token, _ in b] and all(
        x is y is None or math.isclose(x, y, abs_tol=TOLERANCE) for (_, x), (_, y) in zip(a, b, strict=True)
    )
