"""`das replay` from the command line to its files."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from sglang_das import cli
from sglang_das.replay import ReplayError
from sglang_das.replay.compare import compare
from sglang_das.replay.jobs import Job, Setup, missing, run, run_apart
from sglang_das.replay.peers import Ngram
from sglang_das.screen import Screen

from .traces import lines, make_trace, random_responses

RESPONSES = random_responses(11, 4, vocabulary=4, longest=60)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    known = {"seed": 3, "temperature": 0.8}
    path.write_text(lines(RESPONSES, epochs=3, **known))
    return path


def replay(*words):
    return cli.main(["replay", *map(str, words)])


def test_the_files_hold_what_was_measured(recording, tmp_path, capsys):
    report, page = tmp_path / "r.json", tmp_path / "r.html"
    assert (
        replay(recording, "--drafters", "das,das-chain", "--budgets", "3,8,policy", "--json", report, "--html", page)
        == 0
    )
    content = json.loads(report.read_text())
    assert {"machine", "settings", "trace", "results"} <= content.keys()
    assert [(row["drafter"], row["budget"]) for row in content["results"]] == [
        (name, budget) for name in ("das", "das-chain") for budget in (3, 8, "policy")
    ]
    keys = {
        "drafter",
        "budget",
        "floor",
        "tokens",
        "steps",
        "nodes",
        "tokens_per_step",
        "ece",
        "draft_us_p50",
        "draft_us_p99",
    }
    for row in content["results"]:
        assert keys <= row.keys()
        assert row["tokens"] == 2 * sum(len(response) - 1 for response in RESPONSES)
        assert row["tokens_per_step"] == row["tokens"] / row["steps"] > 1.2
    table = capsys.readouterr().out
    assert f"{content['results'][0]['tokens_per_step']:.3f}" in table
    check_page(page.read_text(), budgets=3)


def check_page(text, budgets):
    """All plots are there, with points in them, and nothing is fetched from anywhere."""
    once, by_budget = ("budget", "makespan"), (
        "reliability", "depth", "by_match_length", "by_position", "by_length_class", "by_epoch",
    )  # fmt: skip
    plots = re.findall(r'<figure data-plot="(\w+)">(.*?)</figure>', text, re.DOTALL)
    assert sorted(name for name, _ in plots) == sorted([*once, *by_budget * budgets])
    for name, body in plots:
        assert body.count("<circle") + body.count("<rect") >= 2, name
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)


def test_the_first_epoch_alone_is_cold(recording, tmp_path):
    report = tmp_path / "r.json"
    assert replay(recording, "--drafters", "das", "--budgets", "4", "--cold", "--json", report) == 0
    content = json.loads(report.read_text())
    assert content["trace"]["counted_epochs"] == "first"
    assert content["results"][0]["tokens"] == sum(len(response) - 1 for response in RESPONSES)


def test_held_out_rollouts_are_played_and_the_history_is_not(recording, tmp_path):
    report = tmp_path / "r.json"
    for more in ((), ("--apart",)):
        words = (
            "--drafters",
            "das",
            "--budgets",
            "4",
            "--history",
            "0:2",
            "--held-out",
            "2:3",
            "--json",
            report,
            *more,
        )
        assert replay(recording, *words) == 0
        content = json.loads(report.read_text())
        assert (content["trace"]["history_rollouts"], content["trace"]["rollouts"]) == (8, 4)
        assert content["results"][0]["tokens"] == sum(len(response) - 1 for response in RESPONSES)


def test_a_floor_drafts_less(recording, tmp_path):
    nodes = []
    for floor in (0, 0.5):
        replay(recording, "--drafters", "das", "--budgets", "8", "--floor", floor, "--json", tmp_path / "r.json")
        nodes.append(json.loads((tmp_path / "r.json").read_text())["results"][0]["nodes"])
    assert nodes[1] < nodes[0]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--history", "0:2"], "come together"),
        (["--history", "0:2", "--held-out", "1:3"], "overlap"),
        (["--history", "0:2", "--held-out", "90:99"], "leaves no rollout"),
        (["--apart"], "--apart needs"),
        (["--cold", "--history", "0:1", "--held-out", "1:2"], "--cold is without a history"),
        (["--policy", "none-such"], "--policy none-such"),
        (["--json", "nowhere/r.json"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(recording, capsys, words, reason):
    assert replay(recording, "--drafters", "das", "--budgets", "4", *words) == 2
    assert reason in capsys.readouterr().err


def test_a_bad_file_is_refused_with_its_line(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines([[1, 2]], epochs=1) + "{\n")
    assert replay(path) == 2
    assert f"das replay: {path}:2: it is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--drafters", "x"], ["--budgets", "0"], ["--floor", "2"], ["--history", "2:1"], ["--python", "x=y"]]
)
def test_a_bad_option_is_refused(recording, capsys, words):
    with pytest.raises(SystemExit):
        replay(recording, *words)
    assert words[0] in capsys.readouterr().err


def test_a_peer_whose_package_is_not_there_is_left_out_and_said(recording, capsys):
    comparison = compare(
        Setup([str(recording)]), ["das", "arctic"], [4], {"arctic_inference": "/no/such/python"}, Screen()
    )
    assert [row["drafter"] for row in comparison.results] == ["plain", "das"]
    assert "/no/such/python does not start" in comparison.left_out["arctic"]
    assert "arctic is left out" in capsys.readouterr().out


def test_a_process_of_its_own_plays_the_same(recording):
    setup, jobs = Setup([str(recording)], slots=3), [Job("das", 4), Job("das", "policy")]
    ticks = []
    apart = run_apart(jobs, setup, sys.executable, ticks.append)
    here = list(run(jobs, setup.read(), setup, lambda tokens: None))
    for one, other in zip(apart, here, strict=True):
        assert one.emitted.tolist() == other.emitted.tolist()
    assert sum(ticks) == 2 * 3 * sum(map(len, RESPONSES))


def test_a_process_that_fails_is_reported(recording):
    with pytest.raises(ReplayError, match="no-such failed under"):
        run_apart([Job("no-such", 4)], Setup([str(recording)]), sys.executable, lambda tokens: None)


def test_the_ngram_mask_becomes_parents_without_root_and_padding():
    import numpy as np
    from sglang_das.replay.drafters import Turn

    corpus = Ngram.__new__(Ngram)
    corpus.width = 4
    # Under the root 7: 5 and 0, under 5: 6; the last node is padding.
    tokens = [7, 5, 0, 6, 0]
    mask = np.eye(5, dtype=bool)
    mask[:, 0] = True
    mask[3, 1] = True
    one = np.zeros(1, np.int64)
    drafts = corpus._drafts(tokens, mask.ravel(), Turn(one, one, one, np.array([4], np.int32), np.zeros(1, np.float32)))
    assert drafts.sizes.tolist() == [3]
    assert drafts.tokens[0, :3].tolist() == [5, 0, 6]
    assert drafts.parents[0, :3].tolist() == [-1, -1, 0]


@pytest.mark.timeout(600)  # importing SGLang and compiling its corpus
def test_sglangs_corpus_is_driven_as_it_must_be(tmp_path):
    if missing("sglang", sys.executable):
        pytest.skip("SGLang is not installed")
    response = list(range(10, 60))
    path = tmp_path / "rollouts.jsonl"
    path.write_text(lines([response], epochs=2))
    for played in run_apart(
        [Job("ngram-bfs", 4), Job("ngram-prob", 4)], Setup([str(path)]), sys.executable, lambda tokens: None
    ):
        # The second time it knows every token: a chain of four is right each time.
        assert played.emitted[played.rollout == 0].mean() == 1.0
        assert played.emitted[played.rollout == 1].mean() > 4.0


@pytest.mark.skipif(importlib.util.find_spec("arctic_inference") is None, reason="ArcticInference is not installed")
def test_arctic_is_driven_as_it_must_be():
    response = list(range(10, 60))
    trace = make_trace([response, response], epochs=[0, 1])
    (played,) = run([Job("arctic", 4)], trace, Setup([]), lambda tokens: None)
    assert played.emitted[played.rollout == 1].mean() > 4.0


def test_our_drafters_need_neither_sglang_nor_torch(recording):
    code = "import sys; sys.modules.update(torch=None, sglang=None); from sglang_das import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "replay", str(recording), "--drafters", "das,ngram", "--budgets", "4,policy"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0
    assert "das" in result.stdout
