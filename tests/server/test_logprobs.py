"""Log-probabilities of drafted and other tokens are plain decoding's, input ones included."""

import math

import pytest

from .support import body, prompts

TOLERANCE = 1e-4


def requests_with_logprobs(**options):
    requests = []
    for i, prompt in enumerate(prompts(6, seed=60)):
        request = body(prompt, seed=i, **{"temperature": 0.8, **options})
        requests.append(
            {
                **request,
                "return_logprob": True,
                "logprob_start_len": (0, len(prompt) // 2, -1)[i % 3],
                "top_logprobs_num": (0, 3)[i % 2],
                "token_ids_logprob": [[2, 3, 250], None][i % 2],
            }
        )
    return requests


def figures(value):
    """All numbers of an answer's log-probabilities, in order, with their tokens."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from figures(item)
    elif isinstance(value, int | float):
        yield value


KEYS = [
    f"{side}_{kind}"
    for side in ("input", "output")
    for kind in ("token_logprobs", "top_logprobs", "token_ids_logprobs")
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"top_k": 10, "top_p": 0.9},
        {"min_p": 0.05, "temperature": 1.2},
        {"frequency_penalty": 0.5, "repetition_penalty": 1.2, "min_new_tokens": 30, "logit_bias": {"3": 2.0}},
        {"regex": "[a-h]+[x-z]"},
        {"regex": "[a-h]+[x-z]", "temperature": 0, "presence_penalty": 0.3},
    ],
    ids=["sampled", "greedy", "filtered", "min_p", "penalised", "grammar", "penalised greedy grammar"],
)
def test_log_probabilities_are_those_of_plain_decoding(servers, options):
    plain, das = servers("plain"), servers("das")
    wanted = requests_with_logprobs(**options)
    expected = plain.generate(wanted)
    before = das.das()["accepted"]
    for _ in range(2):
        das.post("/flush_cache")
        for reference, answer in zip(expected, das.generate(wanted), strict=True):
            assert answer["output_ids"] == reference["output_ids"]
            for key in KEYS:
                a, b = (list(figures(one["meta_info"].get(key))) for one in (reference, answer))
                assert len(a) == len(b), key
                assert all(math.isclose(x, y, abs_tol=TOLERANCE) for x, y in zip(a, b, strict=True)), key
            count = len(answer["output_ids"])
            assert len(answer["meta_info"]["output_token_logprobs"]) == count
            assert [entry[1] for entry in answer["meta_info"]["output_token_logprobs"]] == answer["output_ids"]
    assert das.das()["accepted"] > before


def test_requests_with_and_without_log_probabilities_share_a_batch(servers):
    plain, das = servers("plain"), servers("das")
    wanted = [
        {**body(prompt, temperature=0.8, seed=i), "return_logprob": i % 2 == 0}
        for i, prompt in enumerate(prompts(8, seed=61))
    ]
    expected, answers = plain.generate(wanted), das.generate(wanted)
    assert [answer["output_ids"] for answer in answers] == [answer["output_ids"] for answer in expected]
    assert [("output_token_logprobs" in answer["meta_info"]) for answer in answers] == [i % 2 == 0 for i in range(8)]
