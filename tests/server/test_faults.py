"""An error anywhere in drafting, learning or policy leaves every request right and drafting off; one in verification is
loud.
"""

import http.client
import urllib.error

import pytest
from sglang_das.cli import main

from .faults.sitecustomize import CLOCK, PLACES
from .support import body, prompts

WANTED = [
    body(prompt, temperature=0.8, seed=i, **({"regex": "[a-p]+"} if i % 4 == 3 else {}))
    for i, prompt in enumerate(prompts(8, seed=20))
]


@pytest.fixture(scope="module")
def fault(tmp_path_factory):
    """The file that says which place is broken."""
    file = tmp_path_factory.mktemp("fault") / "place"
    file.write_text("none")
    return file


@pytest.fixture(scope="module")
def das(faulty_server, fault, tmp_path_factory):
    with faulty_server(fault, tmp_path_factory.mktemp("logs") / "das.log") as client:
        yield client


@pytest.mark.parametrize("place", [place for place in PLACES if place != "verification"])
def test_an_error_turns_drafting_off_and_nothing_else(servers, das, fault, place):
    reference = servers("plain").tokens(WANTED)
    assert das.tokens(WANTED) == reference
    before = das.das()
    assert before["state"] == "on"
    fault.write_text(place)
    assert das.tokens(WANTED) == reference
    if place == "policy version":
        das.post("/flush_cache")
    state = das.das()
    assert state["failures"] == before["failures"] + 1
    assert state["state"].startswith("off (error in ")
    assert f"injected into {place}" in state["state"]
    assert "decoding goes on without drafts" in das.log_text()
    assert f"injected into {place}" in das.log_text()
    assert das.tokens(WANTED) == reference
    assert das.das()["drafted"] == state["drafted"]
    fault.write_text("none")
    das.post("/set_internal_state", {"server_args": {"das_enabled": 1}})
    for _ in range(2):
        assert das.tokens(WANTED) == reference
    after = das.das()
    assert after["state"] == "on"
    assert after["accepted"] > state["accepted"]
    assert after["failures"] == state["failures"]


def test_clocks_that_jump_change_nothing(servers, das, fault):
    reference = servers("plain").tokens(WANTED)
    before = das.das()
    fault.write_text(CLOCK)
    for _ in range(3):
        assert das.tokens(WANTED) == reference
    after = das.das()
    fault.write_text("none")
    assert (after["state"], after["failures"]) == ("on", before["failures"])
    assert after["accepted"] > before["accepted"]
    before = das.das()["accepted"]
    assert das.tokens(WANTED) == reference
    assert das.das()["accepted"] > before, "times that cannot be true were believed"


def test_an_error_while_requests_run(servers, das, fault):
    """The fault comes in the middle of rollouts, and drafting is switched on again in the middle of them."""
    from .test_requests import are_beginnings_of, cut_short, go_on_and_abort, long_requests, there, while_running

    wanted = long_requests(6, 21)

    def fail_and_recover():
        fault.write_text("tree")
        while das.das()["state"] == "on":
            assert there(das), "they were over too soon"
        fault.write_text("none")
        das.post("/set_internal_state", {"server_args": {"das_enabled": 1}})
        go_on_and_abort(das)

    answers = while_running(das, wanted, fail_and_recover)
    wanted = cut_short(wanted, answers)
    reference = servers("plain").tokens(wanted)
    assert are_beginnings_of(reference, answers)
    assert das.das()["state"] == "on"
    assert das.tokens(wanted) == reference


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ("first drafts kept", 1, "DIFFERENT: plain decoding is reproducible here, but with drafts"),
        ("anything sampled", 3, "UNDECIDED: plain decoding is not reproducible on this server"),
    ],
)
def test_the_doctor_sees_what_is_not_the_same(das, fault, capsys, change, status, words):
    fault.write_text(f"changed: {change}")
    assert main(["doctor", "--lossless", das.url, "--max-new-tokens", "32"]) == status
    fault.write_text("none")
    out = capsys.readouterr().out
    assert words in out
    assert "first    plain/das: prompt 0, greedy, token " in out
    assert das.das()["state"] == "on"


def test_an_error_in_verification_is_loud(das, fault):
    """The last test here: the server ends, and no client gets tokens that were not verified."""
    das.tokens(WANTED[:1])
    fault.write_text("verification")
    with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
        das.generate(WANTED[:2])
    assert "injected into verification" in das.log_text()
