"""What a play comes to, against sums written out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang_das.replay.control import ByPolicy, FixedBudget, Latency
from sglang_das.replay.drafters import OURS, Das, Nobody
from sglang_das.replay.figures import Figures, by_depth, calibration_error, reliability
from sglang_das.replay.play import Played, play

from .traces import make_trace, random_responses

LATENCY = Latency(base=1.0, per_request=0.0, per_row=0.0)


def played_nodes(nodes):
    """A play of one request step a node, each with (probability, kept)."""
    n = len(nodes)
    promised = np.array([[p] for p, _ in nodes], np.float32)
    return Played(
        epoch=np.zeros(n, np.int64), requests=np.ones(n, np.int64), draft_seconds=np.zeros(n), step_seconds=np.ones(n),
        rollout=np.zeros(n, np.int64), position=np.ones(n, np.int64), emitted=np.ones(n, np.int64),
        sizes=np.ones(n, np.int32), parents=np.full((n, 1), -1, np.int16),
        probabilities=promised, believed=promised, kept=np.array([[kept] for _, kept in nodes]),
    )  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_the_mean_gap_of_the_bins(nodes):
    error = 0.0
    for i in range(20):
        inside = [(p, kept) for p, kept in nodes if min(int(p * 20), 19) == i]
        error += abs(sum(p - kept for p, kept in inside)) / len(nodes)
    played = played_nodes(nodes)
    assert calibration_error(played, np.ones(len(nodes), bool)) == pytest.approx(error, abs=1e-6)


def test_only_counted_steps_and_used_nodes_are_in_the_bins():
    played = played_nodes([(0.9, True), (0.1, True), (0.5, False)])
    played.sizes[1] = 0
    bins = reliability(played, np.array([True, True, False]))
    assert [(row["nodes"], row["kept"]) for row in bins] == [(1, 1.0)]
    assert calibration_error(played, np.zeros(3, bool)) is None


@pytest.fixture(scope="module")
def outcome():
    responses = random_responses(8, 24, vocabulary=3, longest=50)
    trace = make_trace(responses, problems=[0, 1, 2] * 8, epochs=[i // 8 for i in range(24)])
    plain = play(trace, Nobody(), FixedBudget(0), 4, LATENCY)
    played = play(trace, Das(trace, OURS["das"], 6), FixedBudget(6), 4, LATENCY)
    return trace, plain, played


@pytest.mark.parametrize("cold", [False, True])
def test_the_row_counts_the_epochs_it_says(outcome, cold):
    trace, plain, played = outcome
    row = Figures(trace, cold, plain).row("das", 6, 0.0, True, played)
    counting = (trace.epochs[played.rollout] == 0) == cold
    assert row["tokens"] == sum(trace.lengths[i] - 1 for i in range(24) if (trace.epochs[i] == 0) == cold)
    assert row["steps"] == counting.sum()
    assert row["tokens_per_step"] == row["tokens"] / row["steps"]
    assert row["accepted"] == played.kept[counting].sum()
    # A step takes a second, so a makespan is its number of turns.
    assert row["makespan_s"] == ((played.epoch == 0) == cold).sum()
    assert row["plain_makespan_s"] == ((plain.epoch == 0) == cold).sum() > row["makespan_s"]


def test_every_breakdown_holds_every_counted_step(outcome):
    trace, plain, played = outcome
    row = Figures(trace, False, plain).row("das", 6, 0.0, True, played)
    for name in ("by_match_length", "by_position", "by_length_class"):
        assert sum(group["steps"] for group in row[name]) == row["steps"]
        assert sum(group["tokens"] for group in row[name]) == row["tokens"]
    assert [group["group"] for group in row["by_epoch"]] == ["1", "2", "3"]
    assert sum(group["tokens"] for group in row["by_epoch"][1:]) == row["tokens"]
    assert sum(group["nodes"] for group in row["by_depth"]) == row["nodes"]
    assert sum(group["kept"] for group in row["by_depth"]) == row["accepted"]


def test_depths_are_shares_of_the_steps_that_got_there():
    played = played_nodes([(0.5, True), (0.5, False), (0.5, True), (0.5, True)])
    assert by_depth(played, np.ones(4, bool)) == [{"depth": 1, "nodes": 4, "kept": 3, "share_of_steps": 0.75}]


def test_match_lengths_are_those_of_a_search(outcome):
    trace, plain, _ = outcome
    matches = Figures(trace, False, plain)._match_lengths
    texts = [[-1, *trace.response(i).tolist()] for i in range(12)]  # the beginning counts as a token
    for rollout, text in enumerate(texts):
        earlier = [texts[i] for i in range(rollout) if trace.problems[i] == trace.problems[rollout]]
        for end in range(2, len(text) + 1):
            known = [*earlier, text[: end - 1]]  # an occurrence in itself must end earlier
            found = (k for k in range(1, end + 1) if any(contains(other, text[end - k : end]) for other in known))
            assert matches[trace.offsets[rollout] + end - 2] == max(found, default=0)


def contains(text, part):
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def test_a_recording_of_single_tokens_has_nothing_to_step():
    trace = make_trace([[1], [2]], epochs=[0, 1])
    plain = play(trace, Nobody(), FixedBudget(0), 4, LATENCY)
    played = play(trace, Das(trace, OURS["das"], 6), FixedBudget(6), 4, LATENCY)
    row = Figures(trace, False, plain).row("das", 6, 0.0, True, played)
    assert (row["tokens"], row["steps"], row["tokens_per_step"], row["ece"]) == (0, 0, 1.0, None)


class Humble(Das):
    """Claims less than its drafts are worth."""

    def step(self, turn):
        drafts = super().step(turn)
        return replace(drafts, probabilities=drafts.probabilities**2)


def test_the_policy_believes_what_drafts_have_been_worth(outcome):
    trace, plain, _ = outcome
    for control in (ByPolicy("das", 6, 60), FixedBudget(6)):
        played = play(trace, Humble(trace, OURS["das"], 6), control, 4, Latency(1.0, 0.0, 0.001))
        row = Figures(trace, cold=False, plain=plain).row("das", 6, 0.0, True, played)
        if isinstance(control, ByPolicy):
            assert row["ece_believed"] < 0.7 * row["ece"]
        else:
            assert row["ece_believed"] == row["ece"] > 0.05
