"""Each idea of the drafter may be on or off: the outputs stay; and with the sampler's noise drafts come true."""

import pytest

from .support import body, build_model, prompts, start_server

SETTINGS = [
    {"SHAPE": "chain", "MAX_WIDTH": "5"},
    {"SOFT": "0", "REJECTED": "0", "SHARED": "0", "COUPLED": "0"},
    {"COUPLED": "0", "SHARED": "0", "MAX_WIDTH": "32", "ARM": "unlimited"},
    {"PACKED": "0"},
]


def rollouts(epoch):
    """Samples of a few prompts, of all kinds of sampling."""
    kinds = [
        {"temperature": 0.8},
        {"temperature": 1.0},
        {"temperature": 0},
        {"temperature": 1.0, "top_k": 9},
        {"temperature": 0.8, "frequency_penalty": 0.3, "repetition_penalty": 1.1, "min_new_tokens": 9},
        {"temperature": 0.8, "regex": "[a-p]+", "presence_penalty": 0.4},
    ]
    return [
        body(prompt, seed=None if kind["temperature"] == 0 else 10_000 * epoch + 100 * p + sample, **kind)
        for p, prompt in enumerate(prompts(4, seed=70))
        for sample, kind in enumerate(kinds)
    ]


def environment(settings):
    return {f"SGLANG_DAS_{name}": value for name, value in settings.items()}


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings))
def test_the_same_seeds_give_the_same_rollouts(servers, model, tmp_path, settings):
    plain = servers("plain")
    with start_server("das", model, tmp_path / "das.log", environment=environment(settings)) as das:
        for epoch in range(2):
            wanted = rollouts(epoch)
            assert das.tokens(wanted) == plain.tokens(wanted)
        assert das.das()["state"] == "on"
        counted = das.das()
        assert counted["accepted"] > 0
        needed = counted["request_steps"] + counted["drafted"]
        assert counted["rows"] > needed if "PACKED" in settings else counted["rows"] == needed


@pytest.fixture(scope="module")
def bigram_model(tmp_path_factory):
    """Its next token depends on the last one alone: an attention that adds nothing."""
    return build_model(tmp_path_factory.mktemp("bigram"), vocabulary=64, sharpness=1.5, attends=False)


@pytest.mark.parametrize(("coupled", "least", "most"), [("1", 0.9, 1.0), ("0", 0.0, 0.2)])
def test_coupled_drafts_of_a_known_target_come_true(bigram_model, tmp_path, coupled, least, most):
    """With no more followers than are kept, and nearly every one seen, the drafter knows what the target will draw."""
    settings = {"COUPLED": coupled, "SHAPE": "chain", "ARM": "unlimited"}
    wanted = [
        body(prompt, temperature=1.0, top_k=8, max_new_tokens=200, ignore_eos=True)  # a seed would key noise by rank
        for prompt in prompts(4, vocabulary=64)
    ]
    with start_server("das", bigram_model, tmp_path / "das.log", environment=environment(settings)) as das:
        das.tokens(wanted * 12)
        before = das.das()
        das.tokens(wanted * 8)
        after = das.das()
        kept = (after["accepted"] - before["accepted"]) / (after["drafted"] - before["drafted"])
        assert least < kept <= most
