"""Every way to sample: with the same seeds the tokens are those of a plain server, and drafts are at work."""

import pytest

from .support import body, prompts

FILTERS = [
    {"top_k": 8},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 12, "min_p": 0.02},
    {"top_p": 0.95, "min_p": 0.01},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.01},
    {"top_k": 1},
]


def requests_with(options, *, seed, count=6, samples=3, **more):
    """Groups of samples of a few prompts; options take turns, or are the same for all."""
    options = options if isinstance(options, list) else [options]
    return [
        body(prompt, seed=1000 * seed + 10 * p + sample, **{"temperature": 0.8, **options[p % len(options)], **more})
        for p, prompt in enumerate(prompts(count, seed=seed))
        for sample in range(samples)
    ]


def assert_same(servers, wanted, *, kind="", drafted=True):
    """Compares tokens, twice: the second time each rollout has itself as history."""
    plain, das = servers(f"plain{kind}"), servers(f"das{kind}")
    reference = plain.tokens(wanted)
    before = das.das()
    assert das.tokens(wanted) == reference
    assert das.tokens(wanted) == reference
    after = das.das()
    assert after["state"] == "on"
    if drafted:
        assert after["accepted"] > before["accepted"], "nothing was drafted right, so the comparison shows nothing"
    return reference


@pytest.mark.parametrize("options", FILTERS, ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()))
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_filters(servers, options, temperature):
    wanted = requests_with(options, seed=40 + FILTERS.index(options), temperature=temperature)
    assert_same(servers, wanted)


def test_a_batch_of_all_kinds(servers):
    assert_same(servers, requests_with([*FILTERS, {}, {"temperature": 0}], seed=50, count=10, samples=2))


def test_a_seed_may_be_any_whole_number_of_64_bits(servers):
    prompt = prompts(1, seed=55)[0]
    seeds = (0, -1, 2**31, 2**63 - 1, -(2**63))
    assert_same(servers, [body(prompt, temperature=1.0, seed=seed) for seed in seeds], drafted=False)


def test_samples_of_one_request_differ_without_a_seed_and_agree_with_one(servers):
    das = servers("das")
    for seed, different in ((None, 4), (7, 1)):
        answers = das.generate([body(prompts(1, seed=56)[0], temperature=1.0, seed=seed, n=4)])[0]
        assert len(answers) == 4
        assert len({tuple(answer["output_ids"]) for answer in answers}) == different
