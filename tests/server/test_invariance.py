"""The whole model is batch-invariant: a token's log-probability has the same bits however its row was computed.

Compared are decoding alone, decoding in a batch of changing size, verification in drafts of changing width, and
re-prefilling prompt and output. Greedy, so that one formula gives all of them.
"""

import pytest

from .support import body, prompts

TOP = 4


def with_logprobs(prompt, **options):
    return {
        **body(prompt, temperature=0, **options),
        "return_logprob": True,
        "top_logprobs_num": TOP,
    }


def output_figures(answer):
    meta = answer["meta_info"]
    return [
        [entry[:2] for entry in meta["output_token_logprobs"]],
        [[entry[:2] for entry in row] for row in meta["output_top_logprobs"]],
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities_have_the_same_bits(servers, dtype):
    plain, das = servers("plain", dtype), servers("das", dtype)
    # Lengths differ, so that the batch shrinks from eight rows to one while they run.
    wanted = [with_logprobs(prompt, max_new_tokens=8 + 7 * i) for i, prompt in enumerate(prompts(8, seed=30))]
    alone = [output_figures(answer) for answer in plain.generate(wanted, at_once=1)]
    assert [output_figures(answer) for answer in plain.generate(wanted)] == alone
    before = das.das()["accepted"]
    for _ in range(2):
        assert [output_figures(answer) for answer in das.generate(wanted)] == alone
    assert das.das()["accepted"] > before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prefilled_row_has_the_bits_of_the_decoded_one(servers, dtype):
    plain = servers("plain", dtype)
    prompt = prompts(1, seed=31)[0]
    decoded = plain.generate([with_logprobs(prompt, max_new_tokens=40)])[0]
    output, (figures, top) = decoded["output_ids"], output_figures(decoded)
    plain.post("/flush_cache")
    resumed = [with_logprobs([*prompt, *output[:cut]], max_new_tokens=1) for cut in range(len(output))]
    for cut, answer in enumerate(plain.generate(resumed)):
        assert output_figures(answer) == [figures[cut : cut + 1], top[cut : cut + 1]]
