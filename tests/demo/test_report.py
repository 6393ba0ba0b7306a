"""The arithmetic of the report."""

import io
import json

import pytest
from rich.console import Console
from sglang_das.demo.client import Rollout
from sglang_das.demo.report import (
    GREEDY,
    Comparison,
    Difference,
    EpochRow,
    Report,
    best_ngram,
    epoch_row,
    lengths,
    warm_ratio,
)
from sglang_das.screen import Screen


def rollout(tokens, steps=None, prompt=0, sample=0, finish="stop"):
    return Rollout(prompt, sample, tokens, len(tokens) - 1 if steps is None else steps, 1.0, finish)


def row(epoch, arm, makespan):
    return EpochRow(epoch, arm, makespan, 10, 5, 2.0, 0, 0, 0.0)


def test_tokens_per_step_leaves_out_the_token_of_the_prefill():
    # Six tokens in two steps after the first, and three in one: 7 tokens in 3 steps.
    made = epoch_row(
        2, "das", 3.0, [rollout([1] * 6, 2), rollout([1] * 3, 1)], {"drafted": 8.0, "accepted": 4.0, "draft_cpu_s": 0.5}
    )
    assert made == EpochRow(2, "das", 3.0, 9, 3, 7 / 3, 8, 4, 0.5)


def test_a_plain_server_emits_one_token_per_step_and_drafts_nothing():
    made = epoch_row(1, "plain", 3.0, [rollout([1] * 6), rollout([1])], None)
    assert (made.tokens_per_step, made.drafted, made.accepted, made.draft_cpu_s) == (1.0, 0, 0, 0.0)


def test_a_drafter_that_does_not_tell_is_not_reported_as_zero():
    made = epoch_row(1, "das", 3.0, [rollout([1] * 6, 2)], None)
    assert (made.drafted, made.accepted, made.draft_cpu_s) == (None, None, None)


def test_warm_ratio_compares_the_sums_after_the_first_epoch():
    rows = [
        row(1, "plain", 100),
        row(1, "das", 1),
        row(2, "plain", 10),
        row(2, "das", 9),
        row(3, "plain", 30),
        row(3, "das", 21),
    ]
    assert warm_ratio(rows, "das") == pytest.approx(30 / 40)
    assert warm_ratio(rows[:2], "das") is None


def test_ours_is_set_beside_the_best_of_the_ngram_widths(tmp_path):
    arms = {"plain": 40, "ngram:3": 30, "ngram:5": 25, "ngram:9": 28, "das": 20}
    rows = [row(epoch, arm, 1 if epoch == 1 else makespan) for epoch in (1, 2, 3) for arm, makespan in arms.items()]
    rows[2] = row(1, "ngram:5", 1000)  # the cold epoch does not count
    assert best_ngram(rows) == "ngram:5"
    assert best_ngram([row(2, "das", 1)]) is None
    output = io.StringIO()
    report = Report(
        {"arms": list(arms), "rollouts_per_epoch": 2, "slots": 1}, rows, lengths([rollout([1])]), Comparison()
    )
    report.show(Screen(Console(file=output, highlight=False, width=200)))
    assert "makespan with das is 0.500 of plain, 50.0% shorter" in output.getvalue()
    assert "das is 0.800 of that with ngram:5, the best of SGLang's n-gram drafts, 20.0% shorter" in output.getvalue()
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["best_ngram"], written["warm_ratio_to_best_ngram"]) == ("ngram:5", {"das": 0.8})


def test_the_comparison_finds_the_first_differing_token():
    plain = [rollout([1, 2, 3]), rollout([4, 5]), rollout([6, 7], prompt=1)]
    other = [rollout([1, 2, 3]), rollout([4, 9]), rollout([6, 7, 8], prompt=1)]
    comparison = Comparison()
    assert comparison.add(2, {"plain": plain, "das": other}) == {"das": 1}
    assert comparison.differences == [Difference("das", 2, 0, 0, 1), Difference("das", 2, 1, 0, 2)]
    assert comparison.verdict == {"greedy": True, "seeded": False, "compared": 3}


def test_greedy_and_seeded_differences_are_told_apart():
    comparison = Comparison()
    comparison.add(1, {"plain": [rollout([1])], "das": [rollout([1])]})
    comparison.add(GREEDY, {"das": [rollout([2])], "plain": [rollout([1])]})
    assert comparison.verdict == {"greedy": False, "seeded": True, "compared": 2}


def test_without_a_plain_server_nothing_is_claimed():
    comparison = Comparison()
    assert comparison.add(1, {"das": [rollout([1])]}) == {}
    assert comparison.verdict == {"greedy": None, "seeded": None, "compared": 0}


def test_lengths():
    made = lengths([rollout([0] * size, finish="length" if size == 101 else "stop") for size in range(1, 102)])
    assert made == {"min": 1, "p50": 51, "p90": 91, "max": 101, "mean": 51, "capped": 1 / 101}
    assert lengths([rollout([1, 2])])["p90"] == 2


def test_progress_without_a_terminal_is_a_line_per_quarter():
    output = io.StringIO()
    screen = Screen(Console(file=output, highlight=False))
    with screen.progress("epoch 1, das", 8) as done:
        for _ in range(8):
            done()
    assert [line.partition(",  ")[0][:17] for line in output.getvalue().splitlines()] == [
        f"epoch 1, das: {part}/8" for part in (2, 4, 6, 8)
    ]
