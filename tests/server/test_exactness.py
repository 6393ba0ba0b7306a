"""With the same seeds DAS emits token for token what a plain server emits, drafts or not."""

import pytest

from .support import body, prompts

GROUP = 4


def rollouts(epoch, **options):
    """A group of samples of each prompt, as an RL framework sends them; no seed ever repeats."""
    return [
        body(prompt, seed=1_000_000 * epoch + 1_000 * p + sample, **options)
        for p, prompt in enumerate(prompts(6))
        for sample in range(GROUP)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.0])
def test_seeded_rollouts_are_identical(servers, dtype, temperature):
    plain, das = servers("plain", dtype), servers("das", dtype)
    before = das.das()
    for epoch in range(2):
        wanted = rollouts(epoch + 10 * int(temperature * 10), temperature=temperature)
        assert das.tokens(wanted) == plain.tokens(wanted)
    after = das.das()
    assert after["state"] == "on"
    assert after["accepted"] > before["accepted"], "nothing was drafted right, so the comparison shows nothing"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_rollouts_are_identical(servers, dtype):
    plain, das = servers("plain", dtype), servers("das", dtype)
    wanted = [body(prompt, temperature=0, max_new_tokens=64) for prompt in prompts(8, seed=1)]
    before = das.das()["accepted"]
    reference = plain.tokens(wanted)
    assert das.tokens(wanted) == reference
    assert das.tokens(wanted) == reference, "with the first pass as history"
    assert das.das()["accepted"] > before


def test_a_rollout_does_not_depend_on_its_neighbours(servers):
    das = servers("das")
    wanted = rollouts(77, temperature=0.8)
    together = das.tokens(wanted)
    assert das.tokens(wanted[:3], at_once=1) == together[:3]


def test_greedy_and_sampled_neighbours_share_a_batch(servers):
    plain, das = servers("plain"), servers("das")
    mixed = [
        body(prompt, temperature=0.9 * (i % 2), seed=i) if i % 2 else body(prompt, temperature=0)
        for i, prompt in enumerate(prompts(12, seed=2))
    ]
    assert das.tokens(mixed) == plain.tokens(mixed)


def test_requests_without_a_seed_differ(servers):
    das = servers("das")
    wanted = [body(prompts(1)[0], temperature=1.0)] * 8
    assert len({tuple(tokens) for tokens in das.tokens(wanted)}) == 8
