"""Seeds, and what is read from the server's answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang_das.demo.client import Request, _rollout, das_counters, greedy_requests, rollout_seed, sampled_requests
from sglang_das.demo.tasks import Prompt

places = st.tuples(st.integers(0, 2**20 - 1), st.integers(0, 2**22 - 1), st.integers(0, 2**21 - 1))


@given(st.integers(), st.lists(places, unique=True, max_size=50))
def test_no_two_rollouts_of_a_run_share_a_seed(run, rollouts):
    seeds = [rollout_seed(run, *place) for place in rollouts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_runs_share_no_seed():
    seeds = [
        rollout_seed(run, epoch, p, s) for run in range(8) for epoch in range(4) for p in range(8) for s in range(8)
    ]
    assert len(set(seeds)) == len(seeds)


def test_every_bit_of_a_seed_depends_on_every_part_of_the_place():
    parts = ("run", "epoch", "prompt", "sample")
    for part in range(4):
        flips = [0] * 63
        for value in range(256):
            place = [3, 1, 4, 1]
            place[part] = value
            other = list(place)
            other[part] ^= 1
            changed = rollout_seed(*place) ^ rollout_seed(*other)
            flips = [count + (changed >> bit & 1) for bit, count in enumerate(flips)]
        assert min(flips) > 64, f"flipping the lowest bit of {parts[part]} hardly changes some bit"
        assert max(flips) < 192, f"flipping the lowest bit of {parts[part]} nearly always changes some bit"


@pytest.mark.parametrize("place", [(2**20, 0, 0), (0, 2**22, 0), (0, 0, 2**21), (-1, 0, 0)])
def test_a_place_without_a_seed_of_its_own_is_refused(place):
    with pytest.raises(ValueError, match="to get a seed of its own"):
        rollout_seed(0, *place)


PROMPTS = [Prompt("a", [1, 2]), Prompt("b", [3])]


def test_sampled_requests_come_group_by_group():
    requests = sampled_requests(PROMPTS, 2, run_seed=5, epoch=1, temperature=0.8, max_new_tokens=7)
    assert [(request.prompt, request.sample) for request in requests] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [request.input_ids for request in requests] == [[1, 2], [1, 2], [3], [3]]
    expected = {"temperature": 0.8, "max_new_tokens": 7, "sampling_seed": rollout_seed(5, 1, 1, 0)}
    assert requests[2].sampling_params == expected


def test_greedy_requests_have_temperature_zero():
    assert [request.sampling_params["temperature"] for request in greedy_requests(PROMPTS, max_new_tokens=7)] == [
        0.0,
        0.0,
    ]


@pytest.mark.parametrize(("meta", "steps"), [({}, 4), ({"spec_verify_ct": 2}, 2)])
def test_plain_decoding_takes_a_step_per_token_after_the_first(meta, steps):
    answer = {"output_ids": [1, 2, 3, 4, 5], "meta_info": meta | {"finish_reason": {"type": "length"}}}
    rollout = _rollout(Request(3, 1, [9], {}), answer, 0.5)
    assert (rollout.prompt, rollout.sample, rollout.verify_steps, rollout.finish) == (3, 1, steps, "length")


def test_counters_are_summed_over_ranks_and_absent_without_a_drafter():
    rank = {"das": {"drafted": 3, "accepted": 1, "draft_cpu_s": 0.5, "other": 9}}
    expected = {"drafted": 6, "accepted": 2, "draft_cpu_s": 1.0, "failures": 0}
    assert das_counters({"internal_states": [rank, rank]}) == expected
    assert das_counters({"internal_states": [{}]}) is None
    assert das_counters({}) is None
