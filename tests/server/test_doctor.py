"""`das doctor --lossless` finds out whether a running server's outputs are the same with drafting on and off.

That it tells of a server where they are not is tested in `test_faults`, on the servers broken there.
"""

import json
import signal
import subprocess
import sys
import time

import pytest
from sglang_das.cli import main
from sglang_das.demo.server import free_ports

from .test_requests import long_requests, while_running


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_are_found_identical(servers, dtype, capsys, tmp_path):
    das, file = servers("das", dtype), tmp_path / "result.json"
    assert main(["doctor", "--lossless", das.url, "--max-new-tokens", "48", "--json", str(file)]) == 0
    assert "IDENTICAL: with drafts every rollout is the one plain decoding gives" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert result["identical"]
    assert result["differences"] == []
    assert result["drafted"] > result["accepted"] > result["compared"] > 40
    assert result["plain"] == {"compared": 32, "differences": 0}
    assert das.das()["state"] == "on"


def test_drafting_is_left_as_it_was(servers):
    das = servers("das")
    das.post("/set_internal_state", {"server_args": {"das_enabled": 0}})
    try:
        assert main(["doctor", "--lossless", das.url, "--max-new-tokens", "16"]) == 0
        assert das.das()["state"] == "off (switched off at run time)"
    finally:
        das.post("/set_internal_state", {"server_args": {"das_enabled": 1}})


def test_nothing_drafted_shows_nothing(servers, capsys):
    assert main(["doctor", "--lossless", servers("das").url, "--max-new-tokens", "1"]) == 3
    assert "no draft was accepted, so that nothing was shown" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_drafting_on_and_nothing_running(servers, number):
    das = servers("das")
    command = [sys.executable, "-m", "sglang_das.cli", "doctor", "--lossless", das.url, "--max-new-tokens", "1500"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the tests may run where it is ignored
    ) as process:
        deadline = time.monotonic() + 120
        while das.das()["state"] == "on":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert "interrupted; drafting is as it was" in process.communicate(timeout=120)[1]
        assert process.returncode == 130
    assert das.das()["state"] == "on"
    das.free_slots()  # waits until nothing runs


def test_a_server_without_das_is_told_from_none(servers, capsys):
    assert main(["doctor", "--lossless", servers("plain").url]) == 2
    assert "runs without DAS; start it with --speculative-algorithm DAS" in capsys.readouterr().err
    (port,) = free_ports(1)
    assert main(["doctor", "--lossless", f"http://127.0.0.1:{port}"]) == 2
    assert "is a server running there?" in capsys.readouterr().err


def test_a_busy_server_is_left_alone(servers, capsys):
    das, statuses = servers("das"), []

    def ask_and_end():
        statuses.append(main(["doctor", "--lossless", das.url]))
        das.post("/abort_request", {"abort_all": True})

    while_running(das, long_requests(2, 96), ask_and_end)
    assert statuses == [2]
    assert "the server is busy with 2 requests" in capsys.readouterr().err
    assert das.das()["state"] == "on"
