"""The schedule of a play against one written out request by request."""

from dataclasses import replace

import numpy as np
import pytest
import sglang_das
from hypothesis import given
from hypothesis import strategies as st
from sglang_das.engine.drafts import Drafts
from sglang_das.replay import drafters
from sglang_das.replay.control import ByPolicy, FixedBudget, Latency
from sglang_das.replay.drafters import OURS, Das, Nobody
from sglang_das.replay.play import Played, play

from .traces import make_trace, random_responses

WIDTH = 4
LATENCY = Latency(base=1.0, per_request=0.1, per_row=0.01)


def scripted(rollout, position):
    """A draft that depends on nothing but where a rollout is: tokens and parents."""
    random = np.random.default_rng([rollout, position])
    size = int(random.integers(0, WIDTH + 1))
    return random.integers(0, 3, size), [int(random.integers(-1, node)) if node else -1 for node in range(size)]


class Scripted:
    """Drafts by the script, and checks that it is told everything once and in order."""

    promises = False

    def __init__(self, trace):
        self.trace, self.told, self.learned = trace, {}, []

    def learn(self, rollouts):
        self.learned += rollouts

    def advance(self): ...

    def open(self, rollout):
        self.told[rollout] = 0

    def step(self, turn):
        n = len(turn.rollouts)
        drafts = Drafts(
            np.zeros((n, WIDTH), np.int32), np.full((n, WIDTH), -1, np.int32), np.zeros((n, WIDTH), np.float32),
            np.zeros(n, np.int32),
        )  # fmt: skip
        for row, (rollout, begin, end) in enumerate(zip(turn.rollouts, turn.begin, turn.end, strict=True)):
            assert self.told[rollout] == begin < end
            self.told[rollout] = end
            tokens, parents = scripted(rollout, end)
            drafts.tokens[row, : len(tokens)], drafts.parents[row, : len(tokens)] = tokens, parents
            drafts.sizes[row] = len(tokens)
        return drafts

    def close(self, rollout, begin):
        assert self.told.pop(rollout) == begin


def accepted(response, position, tokens, parents):
    at, count = -1, 0
    while position + count < len(response):
        token = response[position + count]
        children = [i for i, parent in enumerate(parents) if parent == at and tokens[i] == token]
        if not children:
            break
        at, count = children[0], count + 1
    return count


def naive(responses, epochs, slots):
    """(rollout, position, emitted) of every request step, and the makespan of every epoch."""
    steps, makespans = [], []
    for epoch in sorted(set(epochs)):
        waiting = [i for i, of in enumerate(epochs) if of == epoch and len(responses[i]) > 1]
        running, seconds = [], 0.0
        while waiting or running:
            while waiting and len(running) < slots:
                running.append([waiting.pop(0), 1])
            width = 1
            for request in running:
                rollout, position = request
                draft = scripted(rollout, position)
                width = max(width, len(draft[0]) + 1)
                left = len(responses[rollout]) - position
                emitted = min(accepted(responses[rollout], position, *draft) + 1, left)
                steps.append((rollout, position, emitted))
                request[1] += emitted
            seconds += 1.0 + 0.1 * len(running) + 0.01 * len(running) * width
            running = [request for request in running if request[1] < len(responses[request[0]])]
        makespans.append(seconds)
    return steps, makespans


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5))
def test_a_play_is_what_a_server_would_do(seed, count, slots):
    responses = random_responses(seed, count, vocabulary=3)
    epochs = [i // 3 for i in range(count)]
    played = play(make_trace(responses, epochs=epochs), drafter := Scripted(None), FixedBudget(WIDTH), slots, LATENCY)
    steps, makespans = naive(responses, epochs, slots)
    assert list(zip(played.rollout, played.position, played.emitted, strict=True)) == steps
    assert not drafter.told
    for epoch, seconds in zip(sorted(set(epochs)), makespans, strict=True):
        assert played.step_seconds[played.epoch == epoch].sum() == pytest.approx(seconds)


def test_history_is_learned_and_not_played():
    responses = random_responses(3, 6)
    trace = make_trace(responses).split(slice(0, 4), slice(4, 6))
    drafter = Scripted(trace)
    played = play(trace, drafter, FixedBudget(WIDTH), 2, LATENCY)
    assert drafter.learned == [0, 1, 2, 3]
    assert set(played.rollout.tolist()) <= {4, 5}


def test_every_drafter_emits_every_token_of_the_recording():
    responses = random_responses(1, 12)
    trace = make_trace(responses, problems=[0, 1] * 6, epochs=[0] * 6 + [1] * 6, known=True)
    for drafter in (Nobody(), *(Das(trace, ideas, WIDTH) for ideas in OURS.values())):
        played = play(trace, drafter, FixedBudget(WIDTH), 3, LATENCY)
        assert played.emitted.sum() == sum(len(response) - 1 for response in responses)


def test_a_repeated_rollout_is_drafted_to_the_width():
    response = list(range(10, 40))
    trace = make_trace([response] * 3, epochs=[0, 1, 2])
    played = play(trace, Das(trace, OURS["das"], WIDTH), FixedBudget(WIDTH), 1, LATENCY)
    last = played.emitted[played.rollout == 2]
    assert last.mean() > 0.8 * (WIDTH + 1)


def test_a_drafter_never_sees_what_comes():
    """Rollouts that are the same up to a token are drafted for alike up to it."""
    responses = random_responses(5, 8, vocabulary=3, longest=60)
    *before, last = [[*response, 1, 2, 0, 1] for response in responses]
    cut = len(last) // 2
    plays = []
    for end in (last[cut:], [9, 8, 7] * 20):
        trace = make_trace([*before, last[:cut] + end], epochs=[0] * 7 + [1], known=True)
        plays.append(play(trace, Das(trace, OURS["das"], WIDTH), FixedBudget(WIDTH), 4, LATENCY))
    drafts = [
        [
            (position, parents.tolist(), probabilities.tolist())
            for rollout, position, parents, probabilities in zip(
                played.rollout, played.position, played.parents, played.probabilities, strict=True
            )
            if rollout < 7 or position < cut - WIDTH
        ]
        for played in plays
    ]
    assert drafts[0] == drafts[1]
    assert sum(1 for position, *_ in drafts[0]) > 20


def test_the_root_of_a_step_has_the_position_of_the_last_token(monkeypatch):
    trace = make_trace([[5, 6, 7, 8], [5, 9]])
    seen = []
    real = sglang_das.step

    def spy(*arguments, positions, seeds, coupling, **named):
        seen.append((positions.tolist(), seeds.tolist(), coupling.tolist()))
        return real(*arguments, positions=positions, seeds=seeds, coupling=coupling, **named)

    monkeypatch.setattr(sglang_das, "step", spy)
    play(trace, Das(trace, OURS["das"], 1), FixedBudget(1), 2, LATENCY)
    # A prompt of 3 tokens and the one from its prefill: the last of them has position 3.
    assert seen[0] == ([3, 3], [7, 8], [drafters.SEEDED] * 2)
    assert seen[1][0] == [4]
    play(trace, Das(trace, OURS["das-blind"], 1), FixedBudget(1), 2, LATENCY)
    assert seen[-1][2] == [drafters.BLIND]


def test_the_policy_plays_too_and_stays_within_its_width():
    responses = random_responses(2, 30, vocabulary=3, longest=80)
    trace = make_trace(responses, epochs=[i // 10 for i in range(30)])
    played = play(trace, Das(trace, OURS["das"], 7), ByPolicy("das-classes", 7, 80), 4, Latency())
    assert played.sizes.max() <= 7
    assert played.emitted.sum() == sum(len(response) - 1 for response in responses)


@pytest.mark.parametrize("control", [FixedBudget(7), ByPolicy("das", 7, 80, packed=True)], ids=["fixed", "policy"])
def test_packed_rows_are_those_of_roots_and_drafts(control):
    responses = random_responses(2, 30, vocabulary=3, longest=80)
    trace = make_trace(responses, epochs=[i // 10 for i in range(30)])
    latency = Latency(base=0.0, per_request=0.0, per_row=1.0, packed=True)
    played = play(trace, Das(trace, OURS["das"], 7), control, 4, latency)
    assert played.step_seconds.sum() == played.requests.sum() + played.sizes.sum()


def test_rollouts_played_apart_are_those_played_alone():
    responses = random_responses(4, 6, longest=30)
    trace = make_trace(responses).split(slice(0, 3), slice(3, 6))
    parts = [play(part, Das(part, OURS["das"], 3), FixedBudget(3), 8, LATENCY) for part in trace.apart()]
    joined = Played.join(parts, [np.array([0, 1, 2, 3 + i]) for i in range(3)])
    for i in range(3):
        alone = make_trace([*responses[:3], responses[3 + i]], epochs=[0, 0, 0, 1], learned_epochs=1)
        alone = replace(alone, seeds=np.array([*trace.seeds[:3], trace.seeds[3 + i]]))
        expected = play(alone, Das(alone, OURS["das"], 3), FixedBudget(3), 1, LATENCY)
        assert joined.emitted[joined.rollout == 3 + i].tolist() == expected.emitted.tolist()


def test_what_was_played_survives_a_file(tmp_path):
    trace = make_trace(random_responses(6, 5))
    played = play(trace, Das(trace, OURS["das"], WIDTH), FixedBudget(WIDTH), 2, LATENCY)
    played.save(tmp_path / "played.npz")
    loaded = Played.load(tmp_path / "played.npz")
    assert np.array_equal(loaded.kept, played.kept)
    assert loaded.parents.dtype == played.parents.dtype
