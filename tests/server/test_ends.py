"""Where a rollout ends inside a draft: nothing beyond the end is emitted, counted or learnt."""

import re

import pytest

from .support import EOS, LETTERS, body, prompts


def assert_same_ends(servers, wanted, repeats=3):
    """Compares answers whole; repeated, so that ends fall inside drafts."""
    plain, das = servers("plain"), servers("das")
    expected = plain.generate(wanted)
    before = das.das()
    for _ in range(repeats):
        for reference, answer in zip(expected, das.generate(wanted), strict=True):
            assert answer["output_ids"] == reference["output_ids"]
            assert answer["text"] == reference["text"]
            meta = answer["meta_info"]
            assert meta["finish_reason"] == reference["meta_info"]["finish_reason"]
            assert meta["completion_tokens"] == reference["meta_info"]["completion_tokens"]
            if "das" in meta:
                assert meta["completion_tokens"] == 1 + meta["das"]["verify_steps"] + meta["das"]["accepted"]
                assert meta.get("spec_num_correct_drafts", 0) == meta["das"]["accepted"]
    after = das.das()
    assert after["accepted"] > before["accepted"]
    return expected


def reasons(answers):
    return {answer["meta_info"]["finish_reason"]["type"] for answer in answers}


def test_the_end_token(servers):
    wanted = [body(prompt, temperature=1.0, seed=i, max_new_tokens=400) for i, prompt in enumerate(prompts(8, seed=70))]
    expected = assert_same_ends(servers, wanted)
    assert "stop" in reasons(expected)
    assert all(EOS not in answer["output_ids"][:-1] for answer in expected)


def test_ignored_end_tokens(servers):
    wanted = [
        body(prompt, temperature=1.0, seed=i, max_new_tokens=200, ignore_eos=True)
        for i, prompt in enumerate(prompts(8, seed=70))
    ]
    expected = assert_same_ends(servers, wanted)
    assert reasons(expected) == {"length"}
    assert any(EOS in answer["output_ids"] for answer in expected)


def test_stop_tokens(servers):
    """Each request stops at a token of the middle of its own greedy text."""
    plain = servers("plain")
    free = [body(prompt, temperature=0) for prompt in prompts(8, seed=71)]
    texts = plain.tokens(free)
    wanted = [
        body(request["input_ids"], temperature=0, stop_token_ids=[text[len(text) // 2], 300])
        for request, text in zip(free, texts, strict=True)
    ]
    assert reasons(assert_same_ends(servers, wanted)) == {"stop"}


@pytest.mark.parametrize("pattern", [False, True])
def test_stop_strings(servers, pattern):
    """Several stops a request, the one that is complete first not being the first one listed."""
    plain = servers("plain")
    free = [body(prompt, temperature=0.8, seed=i) for i, prompt in enumerate(prompts(8, seed=72))]
    texts = [answer["text"] for answer in plain.generate(free)]
    key = "stop_regex" if pattern else "stop"
    wanted = [
        body(
            request["input_ids"],
            temperature=0.8,
            seed=i,
            **{key: [re.escape(part) if pattern else part for part in (text[30:33], text[20:22], text[21:23]) if part]},
        )
        for i, (request, text) in enumerate(zip(free, texts, strict=True))
    ]
    expected = assert_same_ends(servers, wanted)
    assert "stop" in reasons(expected)


def test_stop_strings_beside_end_tokens(servers):
    wanted = [
        body(prompt, temperature=1.2, seed=i, max_new_tokens=300, stop=[*LETTERS[:4], LETTERS[5:7]])
        for i, prompt in enumerate(prompts(8, seed=73))
    ]
    assert_same_ends(servers, wanted)


def test_every_small_budget(servers):
    wanted = [
        body(prompt, temperature=0.8, seed=i, max_new_tokens=limit)
        for i, prompt in enumerate(prompts(3, seed=74))
        for limit in (1, 2, 3, 4, 5, 7, 11, 17)
    ]
    expected = assert_same_ends(servers, wanted)
    assert all(
        len(a["output_ids"]) <= w["sampling_params"]["max_new_tokens"] for a, w in zip(expected, wanted, strict=True)
    )


def test_the_end_of_the_context(servers):
    """The model's context is 2,048 tokens, and the engine takes no request that could go beyond; these just fit."""
    wanted = [
        body(prompt, temperature=0, max_new_tokens=2048 - 2000, ignore_eos=True)
        for prompt in prompts(3, length=2000, seed=75)
    ]
    expected = assert_same_ends(servers, wanted, repeats=2)
    assert all(2040 < 2000 + len(answer["output_ids"]) <= 2048 for answer in expected)


def test_nothing_beyond_the_end_is_learnt(servers):
    """The history of a prompt holds exactly what its rollouts emitted."""
    das = servers("das")
    prompt = prompts(1, seed=76)[0]
    before = das.das()["history"]["tokens"]
    emitted = 0
    for seed in range(6):
        request = body(prompt, temperature=0.8, seed=seed, max_new_tokens=60, stop=["a", "b", "c"])
        (answer,) = das.generate([request])
        # A rollout that ends with its prefill has nothing to draft from.
        emitted += len(answer["output_ids"]) if len(answer["output_ids"]) > 1 else 0
    after = das.das()["history"]["tokens"]
    assert after - before == emitted
