"""A stock SGLang serves on this CPU: plainly, and with SGLang's own NGRAM, which uses the stand-in's tree functions."""

import os
import sys
from pathlib import Path

import pytest

from ..server.support import body, build_model, prompts, start_server

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"), vocabulary=256, sharpness=3.0)


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    with start_server("plain", model, tmp_path_factory.mktemp("log") / "plain.log") as client:
        yield client


def test_requests_with_seeds_do_not_depend_on_their_neighbours(plain):
    options = [{}, {"top_p": 0.8}, {"top_k": 7}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.9}]
    seeded = [
        body(prompt, temperature=1.0, seed=seed - 2, max_new_tokens=24, ignore_eos=True, **options[seed % len(options)])
        for seed, prompt in enumerate(prompts(10))
    ]
    neighbours = [
        *(body(prompt, temperature=0, max_new_tokens=9) for prompt in prompts(3, seed=1)),
        *(body(prompt, temperature=1.0, max_new_tokens=30) for prompt in prompts(3, seed=2)),
    ]
    alone = plain.tokens(seeded, at_once=1)
    assert plain.tokens(seeded) == alone
    assert plain.tokens([*seeded, *neighbours])[: len(seeded)] == alone
    assert len({tuple(tokens) for tokens in alone}) == len(alone)


def test_requests_without_seeds_differ(plain):
    answers = plain.tokens([body(prompts(1)[0], temperature=1.0, max_new_tokens=20)] * 6)
    assert len({tuple(tokens) for tokens in answers}) == len(answers)


def test_log_probabilities_are_those_of_the_distribution_sampled_from(plain):
    request = body(prompts(1)[0], temperature=1.0, seed=3, max_new_tokens=8)
    request |= {"return_logprob": True, "top_logprobs_num": 256}
    meta = plain.generate([request])[0]["meta_info"]
    for (chosen, token, _), top in zip(meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True):
        by_token = {entry[1]: entry[0] for entry in top}
        assert by_token[token] == chosen
        assert sum(2.718281828459045**value for value in by_token.values()) == pytest.approx(1, abs=1e-4)


def test_sglangs_ngram_emits_the_same_greedy_tokens(model, plain, tmp_path):
    # A repetitive prompt gives it something to draft from; its drafts are compiled on first use, with ninja.
    repetitive = [prompt[:6] * 6 for prompt in prompts(4, seed=5)]
    wanted = [body(prompt, temperature=0, max_new_tokens=40, ignore_eos=True) for prompt in repetitive]
    options = ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "6"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with start_server("plain", model, tmp_path / "ngram.log", environment={"PATH": path}, options=options) as ngram:
        answers = ngram.generate(wanted)
    assert [answer["output_ids"] for answer in answers] == plain.tokens(wanted)
    assert sum(answer["meta_info"]["spec_num_correct_drafts"] for answer in answers) > 0
