"""The policy through its interface: budgets, widths, the off-switch, determinism, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sglang_das.policy import LONG, Plan, Policy, PolicyConfig

CAP = 1000


def opened(policy: Policy, requests: int, cap: int = CAP) -> np.ndarray:
    return np.array([policy.open(i, cap) for i in range(requests)])


def plan_for(policy: Policy, requests: int) -> Plan:
    return policy.plan(opened(policy, requests), np.zeros(requests, np.int32))


def chains(rng: np.random.Generator, requests: int, nodes: int = 15, low: float = 0.4) -> np.ndarray:
    return np.cumprod(rng.uniform(low, 1.0, (requests, nodes)), axis=1).astype(np.float32)


def with_history(arm: str = "das-classes", **settings) -> Policy:
    """Problem 0 answers in about 10 tokens, problem 1 in about 100, problem 2 in about 1000."""
    policy = Policy(PolicyConfig(arm=arm, short_quantile=0.4, **settings))
    for i in range(60):
        problem = i % 3
        policy.close(policy.open(problem, 5000), 10 ** (problem + 1) + i % 7, finished=True)
    return policy


def test_short_requests_do_not_draft_and_long_ones_draft_most():
    policy = with_history(max_width=16, medium_drafts=4)
    rows = np.array([policy.open(problem, 5000) for problem in (0, 1, 2)])
    plan = policy.plan(rows, np.zeros(3, np.int32))
    assert plan.max_drafts.tolist() == [0, 4, 15]
    assert plan.length_class.dtype == np.int8
    assert plan.max_drafts.dtype == np.int32
    assert plan.floor.dtype == np.float32


def test_the_longest_of_the_live_batch_is_long():
    """A Short rollout running alone is what everyone waits for."""
    policy = with_history()
    row = policy.open(0, 5000)
    plan = policy.plan(np.array([row]), np.zeros(1, np.int32))
    assert plan.length_class.tolist() == [LONG]
    assert plan.max_drafts[0] > 0


def test_nobody_drafts_beyond_its_last_token():
    policy = Policy()
    rows = np.array([policy.open(0, 10) for _ in range(3)])
    plan = policy.plan(rows, np.array([0, 7, 9], np.int32))
    assert plan.max_drafts.tolist() == [9, 2, 0]


@pytest.mark.parametrize(("arm", "drafts"), [("off", 0), ("unlimited", 15), ("fixed:5", 5)])
def test_simple_arms(arm, drafts):
    policy = Policy(PolicyConfig(arm=arm))
    plan = plan_for(policy, 4)
    assert plan.max_drafts.tolist() == [drafts] * 4
    choice = policy.width(chains(np.random.default_rng(0), 4), np.full(4, 15, np.int32), plan)
    assert choice.width == drafts + 1
    assert choice.drafts.tolist() == [drafts] * 4


def test_without_drafts_a_step_is_plain():
    policy = Policy()
    plan = plan_for(policy, 3)
    choice = policy.width(np.zeros((3, 15), np.float32), np.zeros(3, np.int32), plan)
    assert (choice.width, choice.tokens, choice.drafts.tolist()) == (1, 3.0, [0, 0, 0])


def test_an_empty_batch_is_no_error():
    policy = Policy()
    plan = policy.plan(np.zeros(0, np.int64), np.zeros(0, np.int32))
    choice = policy.width(np.zeros((0, 15), np.float32), np.zeros(0, np.int32), plan)
    assert choice.width == 1


def trained(cost, **settings) -> Policy:
    policy = Policy(PolicyConfig(**settings))
    rng = np.random.default_rng(0)
    for _ in range(600):
        requests, width = int(rng.integers(1, 20)), int(rng.choice(policy.config.step_widths))
        policy.latency.observe(requests, requests * width, cost(requests, width))
    return policy


TRAINED = trained(lambda requests, width: 0.06 + 0.0015 * requests * width)


@given(st.data())
@settings(deadline=None)
def test_width_equals_brute_force(data):
    requests = data.draw(st.integers(1, 20))
    ratios = data.draw(hnp.arrays(np.float32, (requests, 15), elements=st.floats(0, 1, width=32)))
    sizes = data.draw(hnp.arrays(np.int32, requests, elements=st.integers(0, 15)))
    caps = data.draw(hnp.arrays(np.int32, requests, elements=st.integers(0, 15)))
    path = np.cumprod(ratios, axis=1, dtype=np.float32)
    others = data.draw(st.integers(0, 5))
    rows = np.arange(requests)
    plan = Plan(np.full(requests, LONG, np.int8), caps, np.zeros(requests, np.float32), None, rows, others)
    choice = TRAINED.width(path, sizes, plan)

    usable = np.minimum(sizes, caps)
    corrected = TRAINED.calibration(path).astype(float)
    times = TRAINED.latency.seconds(requests + others)
    rates = []
    for width, seconds in zip(TRAINED.config.step_widths, times, strict=True):
        tokens = others + sum(1.0 + corrected[i, : min(usable[i], width - 1)].sum() for i in range(requests))
        rates.append(tokens / seconds)
        if width == choice.width:
            assert choice.tokens == pytest.approx(tokens, rel=1e-5)
            assert choice.seconds == seconds
    chosen = rates[TRAINED.config.step_widths.index(choice.width)]
    assert choice.drafts.tolist() == np.minimum(usable, choice.width - 1).tolist()
    if not choice.explored:
        assert chosen >= rates[0]
        assert chosen * (1 + TRAINED.config.margin) >= max(rates) * (1 - 1e-5)


PACKED = trained(lambda requests, width: 0.06 + 0.0015 * requests * width, packed=True)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_packed_drafts_equal_brute_force(data):
    requests = data.draw(st.integers(1, 8))
    steps = st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95, 1.0])  # few values: many nodes of equal worth
    ratios = data.draw(hnp.arrays(np.float32, (requests, 6), elements=steps))
    usable = data.draw(hnp.arrays(np.int32, requests, elements=st.integers(0, 6)))
    weights = data.draw(hnp.arrays(np.float64, requests, elements=st.sampled_from([0.5, 1.0, 2.0])))
    path = np.cumprod(ratios, axis=1, dtype=np.float32)
    others = data.draw(st.integers(0, 3))
    rows = np.arange(requests)
    plan = Plan(np.full(requests, LONG, np.int8), usable, np.zeros(requests, np.float32), weights, rows, others)
    choice = PACKED.width(path, usable, plan)

    corrected = PACKED.calibration(path).astype(float)

    def rate(drafts) -> float:
        value = sum(w * (1 + corrected[i, :d].sum()) for i, (w, d) in enumerate(zip(weights, drafts, strict=True)))
        batch = requests + others
        return (value + others) / PACKED.latency.seconds_of_rows(batch, batch + int(sum(drafts))).item()

    worth = sorted({weights[i] * corrected[i, j] for i in range(requests) for j in range(usable[i])})
    thresholds = [[sum(weights[i] * corrected[i, : usable[i]] >= least) for i in range(requests)] for least in worth]
    best = max(rate(drafts) for drafts in [[0] * requests, *thresholds])
    assert choice.width == max(choice.drafts) + 1
    assert (choice.drafts <= usable).all()
    if not choice.explored:
        assert rate(choice.drafts) >= rate([0] * requests)
        assert rate(choice.drafts) * (1 + PACKED.config.margin) >= best * (1 - 1e-5)


def test_packed_rows_go_where_they_are_worth_most():
    path = np.array([[0.9, 0.8, 0.7], [0.9, 0.3, 0.05], [0.05, 0.01, 0.001]], np.float32)
    plan = Plan(np.full(3, LONG, np.int8), np.full(3, 3, np.int32), np.zeros(3, np.float32), None, np.arange(3))
    policy = trained(lambda requests, width: 0.06 + 0.0015 * requests * width, packed=True)
    choice = policy.width(path, np.full(3, 3, np.int32), plan)
    assert (choice.drafts.tolist(), choice.explored) == ([3, 2, 0], False)


def test_exploration_is_rare():
    policy = trained(lambda requests, width: 0.06 + 0.0015 * requests * width)
    rng = np.random.default_rng(0)
    plan = plan_for(policy, 8)
    explored = []
    for _ in range(2000):
        choice = policy.width(chains(rng, 8), np.full(8, 15, np.int32), plan)
        explored.append(choice.explored)
        policy.latency.observe(8, 8 * choice.width, 0.06 + 0.0015 * 8 * choice.width)
    assert 0 < sum(explored[200:]) <= 1800 / 100


def live(policy: Policy, steps: int, *, honest: bool, requests: int = 8, seed: int = 0) -> list[int]:
    """Steps of a drafter that claims 0.9 per token and is right that often, or never."""
    rng = np.random.default_rng(seed)
    rows = opened(policy, requests, cap=10**9)
    claimed = np.broadcast_to(0.9 ** np.arange(1, 16), (requests, 15)).astype(np.float32)
    widths = []
    for _ in range(steps):
        plan = policy.plan(rows, np.zeros(requests, np.int32))
        choice = policy.width(claimed, plan.max_drafts, plan)
        agreed = np.cumprod(rng.random((requests, 15)) < (0.9 if honest else 0.0), axis=1).sum(1)
        agreed = np.minimum(agreed, choice.drafts).astype(np.int32)
        seconds = 0.06 + 0.0015 * requests * choice.width
        policy.observe_step(requests, choice.width, seconds, int(choice.drafts.sum()), int(agreed.sum()))
        policy.observe_drafts(claimed, choice.drafts, agreed + 1)
        widths.append(choice.width)
    return widths


def test_good_drafts_are_used():
    widths = live(Policy(), 500, honest=True)
    assert np.mean(np.array(widths[100:]) >= 6) > 0.9


def test_a_lying_drafter_is_found_out():
    policy = Policy()
    widths = live(policy, 2000, honest=False)
    assert np.mean(np.array(widths[100:]) > 1) < 0.03


def test_measured_loss_turns_speculation_off_and_it_is_tested_again():
    """Calibration unplugged, so that only the measured gain can tell."""
    policy = Policy(PolicyConfig(retest_after=50))
    policy.observe_drafts = lambda *_: None  # type: ignore[method-assign]
    first = live(policy, 1000, honest=False)
    state = policy.describe()
    assert state["times_off"] > 0
    assert np.mean(np.array(first[500:]) == 1) > 0.8
    assert max(first[500:]) > 1
    later = live(policy, 4000, honest=True)
    assert np.mean(np.array(later[-500:]) > 1) > 0.9


def test_the_switch_of_large_batches_leaves_the_tail_alone():
    policy = Policy()
    policy.observe_drafts = lambda *_: None  # type: ignore[method-assign]
    live(policy, 200, honest=False, requests=64)
    assert live(policy, 1, honest=True, requests=2)[0] > 1


@pytest.mark.parametrize(("rollouts", "others", "per_row", "most"), [(2, 62, 0.002, 1.05), (40, 30, 0.0001, 1.2)])
def test_requests_that_are_not_drafted_for_count_in_cost_and_switch(rollouts, others, per_row, most):
    """Drafts that claim much and fail: where rows are dear a few rollouts among others are not drafted for, and where
    they are cheap the measured loss turns speculation off for batches of this size."""
    policy = Policy()
    policy.observe_drafts = lambda *_: None  # type: ignore[method-assign]
    rows, batch = opened(policy, rollouts, cap=10**6), rollouts + others
    path = np.tile(0.9 ** np.arange(1, 16), (rollouts, 1)).astype(np.float32)
    seconds = 0.0
    for step in range(600):
        plan = policy.plan(rows, np.full(rollouts, step, np.int32), others=others)
        choice = policy.width(path, np.minimum(plan.max_drafts, 15), plan)
        took = 0.06 + per_row * batch * choice.width
        policy.observe_step(batch, choice.width, took, int(choice.drafts.sum()), 0)
        seconds += took
    assert seconds < most * 600 * (0.06 + per_row * batch)


def test_a_batch_that_ended_says_nothing_of_the_slots_of_the_next():
    """64 live at once, then 8 at a time: the 8 are not the rest of the 64, and none of them is known to be the last."""
    policy = with_history("das")
    rows = [policy.open(1, 5000) for _ in range(64)]
    policy.plan(np.array(rows), np.zeros(64, np.int32))
    for row in rows:
        policy.close(row, 100, finished=True)
    rows = np.array([policy.open(problem, 5000) for problem in (0, 1, 2, 0, 1, 2, 0, 1)])
    for step in range(8):
        plan = policy.plan(rows, np.full(8, step, np.int32))
    assert plan.weights == pytest.approx(1.0)


def test_a_rollout_ends_whose_problem_was_forgotten():
    policy = Policy(PolicyConfig(max_problems=1))
    rows = [policy.open(0, CAP, 5), policy.open(0, CAP, 5), policy.open(1, CAP)]
    for row in rows:
        policy.close(row, 5, finished=True)


def test_same_calls_same_answers():
    runs = []
    for _ in range(2):
        policy = Policy()
        widths = live(policy, 300, honest=True) + live(policy, 300, honest=False, requests=5)
        runs.append((widths, json.dumps(policy.describe())))
    assert runs[0] == runs[1]


def test_describe_is_plain_and_counts():
    policy = with_history()
    policy.observe_step(4, 2, 0.05, drafted=4, accepted=3)
    described = policy.describe()
    assert json.loads(json.dumps(described))["arm"] == "das-classes"
    assert described["accepted"] == 3
    assert described["problems"] == 3
    assert described["rollouts"] == 60


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({"max_width": 8}, (1, 2, 3, 4, 6, 8)),
        ({"max_width": 10}, (1, 2, 3, 4, 6, 8, 10)),
        ({"max_width": 1}, (1,)),
        ({"max_width": 9, "widths": (1, 4)}, (1, 4, 9)),
        ({"arm": "fixed:5"}, (1, 6)),
        ({"arm": "off"}, (1,)),
    ],
)
def test_widths_reach_the_largest_allowed(settings, widths):
    assert PolicyConfig(**settings).step_widths == widths


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"arm": "fast"}, "arm"),
        ({"arm": "fixed:16"}, "arm"),
        ({"arm": "fixed:0"}, "arm"),
        ({"max_width": 0}, "max_width"),
        ({"widths": (2, 4)}, "widths"),
        ({"widths": (1, 4, 4)}, "widths"),
        ({"short_quantile": 0.9}, "short_quantile"),
        ({"medium_drafts": -1}, "medium_drafts"),
        ({"min_floor": 1.0}, "min_floor"),
        ({"history": 0}, "history"),
        ({"explore_every": 1}, "explore_every"),
        ({"margin": -0.1}, "margin"),
    ],
)
def test_bad_settings_are_refused_by_name(change, named):
    with pytest.raises(ValueError, match=f"policy: .*{named}.* must be "):
        PolicyConfig(**change)


def test_only_the_last_to_finish_counts_once_nobody_waits():
    """Problem 2 runs ten times as long as problem 1: its tokens are worth more, and only then."""
    policy = with_history("das")
    rows = np.array([policy.open(problem, 5000) for problem in (0, 1, 2)])
    generated = np.zeros(3, np.int32)
    assert policy.plan(rows, generated, waiting=5).weights == pytest.approx(1.0)
    weights = policy.plan(rows, generated, waiting=0).weights
    assert weights[2] > 2 * max(weights[:2])
    assert weights.mean() == pytest.approx(1.0)


def test_a_slot_that_stays_free_means_that_nobody_waits():
    policy = with_history("das")
    rows = np.array([policy.open(problem, 5000) for problem in (0, 0, 1, 2)])
    plans = [policy.plan(rows, np.zeros(4, np.int32)) for _ in range(3)]
    policy.close(int(rows[0]), 10, finished=True)
    plans += [policy.plan(rows[1:], np.full(3, 10, np.int32)) for _ in range(5)]
    even = [np.ptp(plan.weights) < 1e-9 for plan in plans]
    assert even[:5] == [True] * 5
    assert not even[-1]


@pytest.mark.parametrize("arm", ["das", "das-classes", "das-budget", "das-printed"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_arm_uses_good_drafts_and_drops_bad_ones(arm, packed):
    assert np.mean(np.array(live(Policy(PolicyConfig(arm=arm, packed=packed)), 600, honest=True)[300:]) > 1) > 0.5
    assert np.mean(np.array(live(Policy(PolicyConfig(arm=arm, packed=packed)), 600, honest=False)[300:]) > 1) < 0.05


def verified(policy: Policy, rows: np.ndarray) -> None:
    requests = len(rows)
    plan = policy.plan(rows, np.zeros(requests, np.int32))
    path = np.broadcast_to(0.9 ** np.arange(1, 16), (requests, 15)).astype(np.float32)
    choice = policy.width(path, np.minimum(plan.max_drafts, 15), plan)
    policy.observe_step(requests, choice.width, 0.05, 0, 0)


def test_it_says_why_a_request_has_its_budget():
    policy = with_history("das-classes")
    rows = np.array([policy.open(problem, 5000) for problem in (0, 1, 2)])
    verified(policy, rows)
    short, medium, long = (policy.explain(int(row)) for row in rows)
    assert short.startswith("no drafts: Short, about ")
    assert medium.startswith("up to 4 drafts ")
    assert long.startswith("up to 15 drafts ")
    assert "% over plain decoding" in long
    assert policy.describe()["why"] == long
    with pytest.raises(ValueError, match="row 77 was not in the last step"):
        policy.explain(77)


@pytest.mark.parametrize(
    ("arm", "why"),
    [("off", "the arm is off"), ("fixed:3", "up to 3 drafts: the arm is fixed:3"), ("unlimited", "up to 15 drafts")],
)
def test_simple_arms_say_so(arm, why):
    policy = Policy(PolicyConfig(arm=arm))
    rows = opened(policy, 2)
    verified(policy, rows)
    assert why in policy.explain(int(rows[0]))


def test_a_rest_is_explained():
    policy = Policy(PolicyConfig(retest_after=50))
    policy.observe_drafts = lambda *_: None  # type: ignore[method-assign]
    for _ in range(1000):
        live(policy, 1, honest=False)
        why = str(policy.describe()["why"])
        if policy.describe()["steps_off"]:
            break
    assert why.startswith("no drafts: they lost against plain decoding in batches of this size, tried again in ")


def test_a_sweep_takes_every_width_in_turn_and_is_a_profile_for_others(tmp_path):
    sweep = Policy(PolicyConfig(arm="sweep", max_width=8))
    rows = opened(sweep, 4)
    taken = []
    for _ in range(60):
        plan = sweep.plan(rows, np.zeros(4, np.int32))
        choice = sweep.width(np.zeros((4, 7), np.float32), np.zeros(4, np.int32), plan)
        sweep.observe_step(4, choice.width, 0.04 + 0.001 * 4 * choice.width, 0, 0)
        taken.append(choice.width)
    assert {width: taken.count(width) for width in taken} == dict.fromkeys(sweep.config.step_widths, 10)

    measured = sweep.describe()["measured"]
    assert [(cell["requests"], cell["width"], cell["samples"]) for cell in measured] == [
        (4, width, 10) for width in sweep.config.step_widths
    ]
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"results": measured}))
    informed = Policy(PolicyConfig(profile=str(file)))
    assert informed.latency.seconds(4)[4] == pytest.approx(0.04 + 0.001 * 4 * 6, rel=0.03)


@pytest.mark.parametrize("content", ["", "{}", '{"results": [{"requests": 2, "rows": 1, "seconds": 0.1}]}'])
def test_what_is_no_profile_is_refused(tmp_path, content):
    file = tmp_path / "profile.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"policy: profile is .*profile\.json.* must "):
        Policy(PolicyConfig(profile=str(file)))


def test_drafts_may_be_trees():
    """Two children of one root: the second agrees, which no chain could say."""
    policy = Policy()
    path = np.full((4, 2), [0.5, 0.4], np.float32)
    for _ in range(200):
        policy.observe_drafts(path, np.full(4, 2, np.int32), np.full(4, 2, np.int32), np.full((4, 2), [False, True]))
    low, high = policy.calibration(np.array([[0.4, 0.5]], np.float32))[0]
    assert low <= high
    assert policy.calibration.ratio == pytest.approx(1 / 0.9, rel=0.05)


def test_bad_calls_are_refused_and_change_nothing():
    policy = with_history()
    before = policy.describe()
    row = policy.open(0, 100)
    plan = policy.plan(np.array([row]), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="max_new_tokens"):
        policy.open(0, 5, generated=5)
    with pytest.raises(ValueError, match="not open"):
        policy.close(row + 1, 5, finished=True)
    with pytest.raises(ValueError, match="length is -1"):
        policy.close(row, -1, finished=True)
    with pytest.raises(ValueError, match="not open"):
        policy.plan(np.array([row, 10**6]), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="shape"):
        policy.plan(np.array([row]), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="plan is for 1 requests"):
        policy.width(np.zeros((2, 4), np.float32), np.zeros(2, np.int32), plan)
    with pytest.raises(ValueError, match="width is 5"):
        policy.observe_step(1, 5, 0.1, 0, 0)
    with pytest.raises(ValueError, match="accepted 2"):
        policy.observe_step(1, 2, 0.1, 1, 2)
    with pytest.raises(ValueError, match="positive time"):
        policy.observe_step(1, 2, float("nan"), 1, 1)
    with pytest.raises(ValueError, match="shape"):
        policy.observe_drafts(np.zeros((2, 4), np.float32), np.zeros(1, np.int32), np.ones(2, np.int32))
    two = np.ones(2, np.int32)
    with pytest.raises(ValueError, match="accepted has shape"):
        policy.observe_drafts(np.zeros((2, 4), np.float32), two, two, np.zeros((2, 3), np.bool_))
    assert policy.describe() == before
    policy.close(row, 9, finished=True)
    with pytest.raises(ValueError, match="not open"):
        policy.close(row, 9, finished=True)


def test_importing_the_policy_needs_neither_engine_nor_torch():
    import subprocess
    import sys

    code = "import sys, sglang_das.policy; assert not {'torch', 'sglang'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
