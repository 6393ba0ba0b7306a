"""`python -m bench.drafting` on small files, with our drafters alone."""

import json
import sys

import numpy as np
import pytest

from bench.drafting import __main__ as drafting

from .traces import lines, random_responses


@pytest.fixture
def measure(tmp_path, monkeypatch):
    def run(*files):
        report = tmp_path / "report.json"
        options = ["--drafters", "das,das-counts", "--budgets", "3,6", "--json", str(report)]
        monkeypatch.setattr(sys, "argv", ["bench.drafting", *map(str, files), *options])
        assert drafting.main() == 0
        return json.loads(report.read_text())

    return run


def test_a_recording_is_measured_warm_and_cold_and_its_steps_timed(tmp_path, measure, capsys):
    responses = random_responses(1, 70, longest=12)
    path = tmp_path / "recording.jsonl"
    path.write_text(lines(responses, epochs=2, seed=1, temperature=1.0))
    content = measure(path)
    assert {(row["case"], row["drafter"], row["budget"]) for row in content["results"]} == {
        (case, drafter, budget) for case in ("warm", "cold") for drafter in ("das", "das-counts") for budget in (3, 6)
    }
    assert {row["tokens"] for row in content["results"]} == {sum(len(response) - 1 for response in responses)}
    warm, cold = (
        next(row["tokens_per_step"] for row in content["results"] if row["case"] == case) for case in ("warm", "cold")
    )
    assert warm > cold >= 1.0
    assert [row["drafter"] for row in content["step_costs"]] == ["das", "das-counts"]
    assert all(row["step64_ms"] > 0 for row in content["step_costs"])
    assert f"{warm:.3f}" in capsys.readouterr().out


def test_a_trace_is_measured_both_ways_round_and_without_history(tmp_path, measure):
    responses = random_responses(2, 6)
    path = tmp_path / "trace.npz"
    offsets = np.cumsum([0, *map(len, responses)])
    np.savez(path, prompt=np.array([1, 2]), tokens=np.concatenate(responses), offsets=offsets)
    tokens = {row["case"]: row["tokens"] for row in measure(path)["results"]}
    first, second = (sum(len(response) - 1 for response in part) for part in (responses[:3], responses[3:]))
    assert tokens == {"first half as history": second, "second half as history": first, "cold": first + second}


def test_a_file_that_cannot_be_read_ends_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.drafting", str(tmp_path / "none.jsonl"), "--drafters", "das"])
    assert drafting.main() == 2
    assert "none.jsonl" in capsys.readouterr().err
