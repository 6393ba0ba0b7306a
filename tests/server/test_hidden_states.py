"""Hidden states are plain decoding's, one for every token that was emitted, whatever was drafted beside it."""

import numpy as np
import pytest

from .support import body, prompts


def requests_with_hidden_states(seed, **options):
    """Requests of one batch; every third does not ask for states."""
    return [
        {**body(prompt, seed=i, **{"temperature": 0.8, **options}), "return_hidden_states": i % 3 < 2}
        for i, prompt in enumerate(prompts(6, seed=seed))
    ]


def rows(answer):
    """A state a row, of the prompt's tokens and the emitted ones alike."""
    return np.vstack(answer["meta_info"]["hidden_states"])


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0}, {"stop_token_ids": list(range(40, 60))}],
    ids=["sampled", "greedy", "ended early"],
)
def test_hidden_states_are_those_of_plain_decoding(servers, options):
    plain, das = servers("plain", "bfloat16"), servers("das", "bfloat16")
    wanted = requests_with_hidden_states(70, **options)
    plain.post("/flush_cache")  # or the states of a cached prompt would be missing
    expected = plain.generate(wanted)
    before = das.das()["accepted"]
    for _ in range(2):
        das.post("/flush_cache")
        for request, reference, answer in zip(wanted, expected, das.generate(wanted), strict=True):
            assert answer["output_ids"] == reference["output_ids"]
            if not request["return_hidden_states"]:
                assert "hidden_states" not in answer["meta_info"]
                continue
            np.testing.assert_array_equal(rows(answer), rows(reference))
            assert len(rows(answer)) == len(request["input_ids"]) + len(answer["output_ids"]) - 1
    assert das.das()["accepted"] > before
