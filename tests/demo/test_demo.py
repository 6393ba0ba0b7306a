"""The whole of `das demo` against stub servers: what it sends and reports, and that it leaves no process behind."""

import contextlib
import gzip
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sglang_das.demo import DemoError, server

STUB_DEMO = Path(__file__).with_name("stub_demo.py")
SMALL = ["--prompts", "2", "--samples", "3", "--epochs", "2", "--slots", "2", "--max-new-tokens", "9"]


def command(folder: Path, kinds: str, *options: str) -> list[str]:
    return [sys.executable, str(STUB_DEMO), str(folder), kinds, *SMALL, *options]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(folder)}


def demo(folder: Path, kinds: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, kinds, *options), capture_output=True, text=True, timeout=120, env=environment(folder)
    )


def processes_of(folder: Path) -> list[int]:
    """Live processes that name the folder on their command line, or whose process id a stub left in it."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and str(folder) in (process.info["cmdline"] or []):
            found.append(process.pid)
    for file in folder.glob("child.pid"):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(int(file.read_text())).status() != psutil.STATUS_ZOMBIE:
                found.append(int(file.read_text()))
    return found


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    assert processes_of(tmp_path) == []


def test_compares_epochs_and_writes_the_report(folder):
    result = demo(folder, "plain,das", "--json", str(folder / "report.json"), "--tasks", "a,b")
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["identical"] == {"greedy": True, "seeded": True, "compared": 2 * 6 + 2}
    assert [(row["epoch"], row["arm"]) for row in report["epochs"]] == [
        (1, "plain"),
        (1, "das"),
        (2, "plain"),
        (2, "das"),
    ]
    keys = [
        "epoch",
        "arm",
        "makespan_s",
        "tokens",
        "verify_steps",
        "tokens_per_step",
        "drafted",
        "accepted",
        "draft_cpu_s",
    ]
    for row in report["epochs"]:
        assert set(keys) <= row.keys()
        assert row["makespan_s"] > 0
        if row["arm"] == "plain":
            assert (row["tokens_per_step"], row["drafted"], row["accepted"], row["draft_cpu_s"]) == (1.0, 0, 0, 0.0)
        else:
            assert 1.5 < row["tokens_per_step"] <= 2.0
            assert row["drafted"] == 2 * row["tokens"]  # the gain of this epoch, not the running total
            assert row["identical"] == 6
    assert report["machine"]["cores"] >= 1
    assert report["settings"]["tasks"] == ["a", "b"]
    assert report["settings"]["server"]["attention_backend"] == "stub"
    assert "Every rollout is token for token the plain server's (14 compared" in result.stdout


def test_output_without_a_terminal_has_no_control_characters(folder):
    result = demo(folder, "plain,das")
    assert result.returncode == 0
    assert "makespan" in result.stdout
    assert not [character for character in result.stdout if ord(character) < 32 and character != "\n"]


def test_both_servers_get_the_same_requests_and_no_seed_twice(folder):
    assert demo(folder, "plain,das").returncode == 0
    journals = [[json.loads(line) for line in file.read_text().splitlines()] for file in sorted(folder.glob("*.jsonl"))]
    assert len(journals) == 2
    requests = [[entry for entry in journal if "flush" not in entry] for journal in journals]
    assert sorted(map(json.dumps, requests[0])) == sorted(map(json.dumps, requests[1]))
    sampled = [entry["sampling_params"] for entry in requests[0] if entry["sampling_params"]["max_new_tokens"] == 9]
    seeds = [params["sampling_seed"] for params in sampled if params["temperature"] == 0.8]
    assert len(set(seeds)) == len(seeds) == 2 * 6
    assert sum(params["temperature"] == 0 for params in sampled) == 2
    for journal in journals:  # one flush after each epoch's rollouts
        flushes = [at for at, entry in enumerate(journal) if "flush" in entry]
        warm_up = 2
        assert flushes == [warm_up + 6, warm_up + 6 + 1 + 6]


def test_differing_rollouts_fail_and_are_named(folder):
    result = demo(folder, "plain,wrong", "--json", str(folder / "report.json"))
    assert result.returncode == 1
    report = json.loads((folder / "report.json").read_text())
    assert report["identical"] == {"greedy": False, "seeded": False, "compared": 14}
    assert len(report["differences"]) == 7  # prompt 1: three samples in two epochs, and greedy
    assert {difference["prompt"] for difference in report["differences"]} == {1}
    assert "ROLLOUTS DIFFER: 7 of 14" in result.stdout


def test_a_server_that_dies_is_explained_by_its_log(folder):
    result = demo(folder, "plain,dies")
    assert result.returncode == 2
    assert "the stub server gives up" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_cannot_listen_is_not_waited_for(folder):
    result = demo(folder, "plain,deaf")
    assert result.returncode == 2
    assert "the das server cannot listen at http://127.0.0.1:" in result.stderr
    assert "Traceback" not in result.stderr


def test_ports_are_free_and_none_of_those_for_outgoing_connections(monkeypatch):
    lowest, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    monkeypatch.setattr(server, "_LOWEST_PORT", lowest - 3)
    ports = set(server.free_ports(3))
    assert ports == {lowest - 3, lowest - 2, lowest - 1}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", lowest - 2))
        assert set(server.free_ports(2)) == ports - {lowest - 2}
        with pytest.raises(DemoError, match="no 3 free TCP ports"):
            server.free_ports(3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupts_leave_no_process_behind(folder, number):
    process = subprocess.Popen(
        command(folder, "stubborn,stubborn", "--epochs", "1000"),
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the tests may run where it is ignored
    )
    deadline = time.monotonic() + 120
    while sum(file.read_text().count("\n") for file in folder.glob("*.jsonl")) < 10:  # well into the epochs
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    assert len(processes_of(folder)) >= 4  # the demo, two servers, a child
    process.send_signal(number)
    time.sleep(0.3)
    process.send_signal(number)  # the impatient user's second Ctrl-C must not stop the clean-up
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"interrupted" in stderr
    assert processes_of(folder) == []


def test_a_hangup_under_nohup_is_ignored(folder):
    process = subprocess.Popen(
        ["nohup", *command(folder, "plain,stubborn")],
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.jsonl")):  # the servers are up, so the handlers are in place
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "Every rollout is token for token" in stdout


@pytest.mark.parametrize("name", ["rollouts.jsonl", "rollouts.jsonl.gz"])
def test_rollouts_are_recorded_with_all_a_replay_needs(folder, name):
    path = folder / "recorded" / name
    path.parent.mkdir()
    result = demo(folder, "plain,das", "--record", str(path), "--json", str(folder / "report.json"))
    assert result.returncode == 0, result.stderr
    with gzip.open(path, "rt") if name.endswith(".gz") else path.open() as file:
        lines = [json.loads(line) for line in file]
    assert [(line["epoch"], line["problem"], line["sample"]) for line in lines] == [
        (epoch, f"made-up-{prompt}", sample) for epoch in (1, 2) for prompt in range(2) for sample in range(3)
    ]
    assert len({line["seed"] for line in lines}) == len(lines)
    for line in lines:
        assert line["prompt"] == [int(line["problem"][-1]), 5, 6]
        assert line["temperature"] == 0.8
        assert line["top_ids"] == [[token + rank for rank in range(8)] for token in line["response"]]
        assert line["top_probabilities"][0] == [round(math.exp(-0.5 * (rank + 1)), 5) for rank in range(8)]
    assert "plain are recorded, which costs that server time" in result.stdout


def test_only_the_first_arm_is_asked_for_distributions(folder):
    assert demo(folder, "plain,das", "--record", str(folder / "rollouts")).returncode == 0
    journals = [[json.loads(line) for line in file.read_text().splitlines()] for file in folder.glob("*.jsonl")]
    asked = [sum(entry.get("return_logprob", False) for entry in journal) for journal in journals]
    assert sorted(asked) == [0, 2 * 6]


def test_arms_say_how_their_servers_differ():
    from sglang_das.demo.arms import arm_options

    assert arm_options("plain").options == []
    das = arm_options("das:shape=chain+arm=fixed:3")
    assert das.options == arm_options("das").options == ["--speculative-algorithm", "DAS"]
    assert das.environment == {"SGLANG_DAS_SHAPE": "chain", "SGLANG_DAS_ARM": "fixed:3"}
    ngram = arm_options("ngram:5")
    assert ngram.options[-2:] == ["--speculative-num-draft-tokens", "5"]
    assert ngram.environment == {"SGLANG_DAS_DRAFTER": "ngram"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "0"], "expected a whole number, 1 or more"),
        (["--temperature", "-1"], "expected a number from 0 to 100"),
        (["--temperature", "nan"], "expected a number from 0 to 100"),
        (["--arms", "plain,plain"], "expected different names"),
        (["--arms", "plain,magic"], "'magic'. Known: plain, das, ngram"),
        (["--arms", "plain:1"], "'plain:1'. Known"),
        (["--arms", "ngram:1"], "'ngram:1'. Known"),
        (["--arms", "das:"], "'' is not SETTING=VALUE. The settings are"),
        (["--arms", "das:coupld=0"], "'coupld=0' is not SETTING=VALUE. The settings are"),
        (["--record", "/nowhere/rollouts.jsonl"], "--record /nowhere/rollouts.jsonl: No such file or directory"),
        (["--json", "/nowhere/report.json"], "there is no folder /nowhere"),
    ],
)
def test_bad_options_are_named(folder, options, message):
    result = demo(folder, "plain,das", *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
