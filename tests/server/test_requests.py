"""The life of a request: ways to send it, to interrupt it and to take it up again. The tokens stay plain decoding's."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from .support import EOS, body, prompts


def long_requests(count, seed, *, tokens=1500, **options):
    """Rollouts that run long enough to be interrupted."""
    return [
        {
            **body(prompt, temperature=0.8, seed=100 * seed + i, max_new_tokens=tokens, ignore_eos=True, **options),
            "rid": f"{seed}-{i}",
        }
        for i, prompt in enumerate(prompts(count, seed=seed))
    ]


def while_running(client, requests, act):
    """Sends the requests to a server at rest, acts once all are there, and returns their answers.

    They come in one batch, so that they come together, and have to be so long that none ends before all are seen.
    """
    batch = {key: [request[key] for request in requests] for key in requests[0]}
    with ThreadPoolExecutor(1) as sender:
        answers = sender.submit(client.generate, [batch])
        deadline = time.monotonic() + 120
        while there(client) < len(requests):
            assert not answers.done(), "they were over too soon"
            assert time.monotonic() < deadline, "they do not come"
        act()
        return answers.result(timeout=120)[0]


def there(client):
    """How many requests run or wait for a place."""
    (load,) = client.get("/v1/loads?include=all")["loads"]
    return load["num_running_reqs"] + load["num_waiting_reqs"]


def go_on_and_abort(client, steps=100):
    """Lets what runs take some steps more, then ends all of it: nobody waits for 1500 tokens."""
    begun = client.das()["request_steps"]
    while client.das()["request_steps"] < begun + steps and there(client):
        pass
    client.post("/abort_request", {"abort_all": True})


def are_beginnings_of(expected, answers):
    """Whether each answer is its rollout as far as it came, and not all of them are empty."""
    ids = [answer["output_ids"] for answer in answers]
    return any(ids) and all(own == whole[: len(own)] for own, whole in zip(ids, expected, strict=True))


def cut_short(requests, answers):
    """The requests, to stop one token after the longest of the answers."""
    return of_length(requests, 1 + max(len(answer["output_ids"]) for answer in answers))


def of_length(requests, tokens):
    """The requests, to stop after so many tokens."""
    return [
        {**request, "sampling_params": {**request["sampling_params"], "max_new_tokens": tokens}} for request in requests
    ]


def test_streams_carry_the_same_tokens(servers):
    plain, das = servers("plain"), servers("das")
    for request in long_requests(2, 80, tokens=60):
        whole = plain.tokens([request])[0]
        for _ in range(2):
            parts = das.stream(request)
            assert parts[-1]["output_ids"] == whole
            assert len(parts) > 1
            for part in parts:
                assert part["output_ids"] == whole[: len(part["output_ids"])]


def test_a_batch_in_one_request(servers):
    plain, das = servers("plain"), servers("das")
    one_by_one = [body(prompt, temperature=0.8, seed=i) for i, prompt in enumerate(prompts(5, seed=81))]
    batch = {
        "input_ids": [request["input_ids"] for request in one_by_one],
        "sampling_params": [request["sampling_params"] for request in one_by_one],
    }
    expected = plain.tokens(one_by_one)
    for _ in range(2):
        (answers,) = das.generate([batch])
        assert [answer["output_ids"] for answer in answers] == expected


def test_joining_and_leaving_a_running_batch(servers):
    """Lengths and starting times differ, and prompts are prefilled in chunks beside decoding."""
    plain, das = servers("plain-tight"), servers("das-tight")
    wanted = [
        body(prompt, temperature=0.8, seed=i, max_new_tokens=5 + 11 * (i % 7))
        for i, prompt in enumerate([*prompts(12, seed=82), *prompts(6, length=150, seed=83)] * 2)
    ]
    expected = plain.tokens(wanted)
    for _ in range(2):
        assert das.tokens(wanted) == expected


def test_retraction_under_memory_pressure(servers):
    """Any five of the requests need more memory than there is. With `ignore_eos` it would be set aside for them."""
    plain, das = servers("plain-tight"), servers("das-tight")
    wanted = [
        body(prompt, temperature=0.8, seed=8400 + i, max_new_tokens=250, logit_bias={str(EOS): -100.0})
        for i, prompt in enumerate(prompts(14, seed=84))
    ]
    expected = plain.tokens(wanted)
    for _ in range(2):
        das.free_slots()  # at rest, the server becomes hopeful again
        answers = das.generate(wanted)
        assert [answer["output_ids"] for answer in answers] == expected
        assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0, "memory was not scarce"


def test_priorities(servers):
    """Urgent requests overtake and preempt others; nobody's tokens change."""
    plain, das = servers("plain-tight"), servers("das-tight")
    wanted = [{**request, "priority": 100 * (i % 3)} for i, request in enumerate(long_requests(18, 85, tokens=40))]
    assert das.tokens(wanted, at_once=18) == plain.tokens(wanted, at_once=18)


def test_abort_of_one(servers):
    plain, das = servers("plain"), servers("das")
    wanted, left = long_requests(4, 86), [4]

    def abort_one():
        das.post("/abort_request", {"rid": "86-1"})
        while left[-1] == 4:
            left.append(there(das))
        go_on_and_abort(das)

    answers = while_running(das, wanted, abort_one)
    assert are_beginnings_of(plain.tokens(cut_short(wanted, answers)), answers)
    assert left[-1] == 3, "the others go on"
    assert answers[1]["meta_info"]["finish_reason"]["type"] == "abort"


def test_aborted_rollouts_go_on_where_they_stopped(servers):
    """Abort of all, four of them queued, then prompt and partial output are sent again, as partial rollouts are."""
    plain, das = servers("plain"), servers("das")
    wanted = long_requests(12, 87)
    before = das.das()
    aborted = while_running(das, wanted, lambda: das.post("/abort_request", {"abort_all": True}))
    partial = [answer["output_ids"] for answer in aborted]
    assert all(answer["meta_info"]["finish_reason"]["type"] == "abort" for answer in aborted)
    assert das.das()["live_rollouts"] == 0
    das.post("/flush_cache")
    whole = 200 + max(map(len, partial))
    assert 200 < whole < 1700
    rest = []
    for request, tokens in zip(wanted, partial, strict=True):
        sampling = {**request["sampling_params"], "max_new_tokens": whole - len(tokens)}
        rest.append({"input_ids": [*request["input_ids"], *tokens], "sampling_params": sampling})
    continued = das.tokens(rest)
    expected = plain.tokens(of_length(wanted, whole))
    assert [a + b for a, b in zip(partial, continued, strict=True)] == expected
    after = das.das()
    assert after["problems"] - before["problems"] == 12, "a continued rollout belongs to its prompt"
    assert after["history"]["tokens"] - before["history"]["tokens"] == 12 * whole


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_pause_and_continue(servers, mode):
    plain, das = servers("plain"), servers("das")
    wanted = long_requests(10, 88 if mode == "retract" else 89)
    emitted = []

    def pause():
        das.post("/pause_generation", {"mode": mode})
        emitted.append(das.das()["request_steps"])
        time.sleep(0.5)
        emitted.append(das.das()["request_steps"])
        if mode == "retract":
            das.post("/flush_cache")
        das.post("/continue_generation")
        go_on_and_abort(das)

    answers = while_running(das, wanted, pause)
    assert emitted[0] == emitted[1]
    assert das.das()["request_steps"] >= emitted[1] + 100
    assert are_beginnings_of(plain.tokens(cut_short(wanted, answers)), answers)


def test_pause_that_aborts(servers):
    plain, das = servers("plain"), servers("das")
    wanted = long_requests(6, 90)

    def pause():
        das.post("/pause_generation", {"mode": "abort"})
        das.post("/continue_generation")

    aborted = while_running(das, wanted, pause)
    assert all(answer["meta_info"]["finish_reason"]["type"] == "abort" for answer in aborted)
    wanted = cut_short(wanted, aborted)
    expected = plain.tokens(wanted)
    assert are_beginnings_of(expected, aborted)
    assert das.tokens(wanted) == expected


def test_a_rollout_aborted_while_it_waits_after_a_retraction_is_closed(servers):
    das = servers("das")

    def retract_and_abort():
        das.post("/pause_generation", {"mode": "retract"})
        das.post("/abort_request", {"abort_all": True})
        das.post("/continue_generation")

    while_running(das, long_requests(4, 91), retract_and_abort)
    assert das.das()["live_rollouts"] == 0


def test_all_slots_are_free_in_the_end(servers):
    """After all of the above, on every server."""
    for kind in ("das", "das-tight"):
        client = servers(kind)
        client.tokens(long_requests(2, 92, tokens=20))
        (load,) = client.get("/v1/loads?include=all")["loads"]
        assert client.free_slots() == load["max_total_num_tokens"]
        assert "memory leak" not in client.log_text()
