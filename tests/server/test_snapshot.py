"""The history is handed from server to server; neither a file that is no good nor a full budget changes an output."""

import time

import pytest

from .support import body, prompts, start_server

WANTED = [body(prompt, temperature=0.8, seed=i) for i, prompt in enumerate(prompts(8, seed=110))]
MANY = [body(prompt, temperature=1.0, seed=i, max_new_tokens=80) for i, prompt in enumerate(prompts(120, seed=111))]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("snapshot") / "history"


def start(model, file, **settings):
    environment = {f"SGLANG_DAS_{name.upper()}": str(value) for name, value in settings.items()}
    log = file.with_name(f"{len(list(file.parent.iterdir()))}.log")
    return start_server("das", model, log, environment={"SGLANG_DAS_SNAPSHOT": str(file), **environment})


def accepted_by(client, requests, reference):
    before = client.das()["accepted"]
    assert client.tokens(requests) == reference
    return client.das()["accepted"] - before


def test_history_goes_from_server_to_server(servers, model, file):
    plain = servers("plain")
    wanted, many = plain.tokens(WANTED), plain.tokens(MANY)
    file.write_bytes(b"DASHIST\n and then nothing that makes sense")

    with start(model, file, history_bytes=1 << 20) as das:
        assert "DAS starts without history" in das.log_text()
        refused = das.das()["snapshot"]
        assert (refused["loaded"], refused["saved"]) == (False, 0)
        assert refused["refused"].startswith("ValueError: ")
        assert file.with_name("history.refused").exists()
        assert not file.exists()
        for _ in range(2):
            accepted_by(das, MANY, many)
        history = das.das()["history"]
        assert history["evicted_problems"] > 0
        assert history["bytes"] < 2 << 20, "it is looked at every 64 steps"
        cold = accepted_by(das, WANTED, wanted)
        assert das.das()["state"] == "on"
    assert file.exists(), "written when the server was asked to end"

    with start(model, file, snapshot_interval_s=0.5) as das:
        state = das.das()
        assert state["snapshot"]["loaded"]
        assert 0 < state["problems"] <= state["history"]["problems"]
        assert accepted_by(das, WANTED, wanted) > cold
        deadline = time.monotonic() + 120
        while das.das()["snapshot"]["saved"] < 2:
            assert time.monotonic() < deadline
            assert das.tokens(WANTED) == wanted
        assert das.das()["snapshot"]["failures"] == 0
