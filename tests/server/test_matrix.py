"""Outputs are plain decoding's for all features x batch sizes x states of the history x widths and shapes x drafts that
are coupled or blind x element types.
"""

import json
import math

import pytest

from .support import body, prompts, start_server
from .test_logprobs import KEYS, TOLERANCE, figures

# Every request is drafted for as far as it goes. What else can be set is tested, on fewer requests, in `test_ideas`.
SETTINGS = [
    ({"SHAPE": "chain", "MAX_WIDTH": "3", "COUPLED": "0", "ARM": "unlimited"}, "float32"),
    ({"MAX_WIDTH": "32", "WINDOW": "1", "ARM": "unlimited"}, "bfloat16"),
]
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"]})
FEATURES = {
    "greedy": {"temperature": 0},
    "cool": {"temperature": 0.6},
    "warm": {"temperature": 1.0},
    "top-k": {"temperature": 1.0, "top_k": 9},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 0.8, "min_p": 0.05},
    "all filters": {"temperature": 1.2, "top_k": 30, "top_p": 0.95, "min_p": 0.01},
    "frequency": {"temperature": 0.8, "frequency_penalty": 0.6},
    "presence": {"temperature": 0.8, "presence_penalty": 0.4},
    "repetition": {"temperature": 0.8, "repetition_penalty": 1.2},
    "bias": {"temperature": 0.8, "logit_bias": {"7": 2.0, "9": -3.0}},
    "stop token": {"temperature": 0.8, "stop_token_ids": list(range(40, 60))},
    "no end": {"temperature": 1.0, "ignore_eos": True},
    "one token": {"temperature": 0.8, "max_new_tokens": 1},
    "long": {"temperature": 0.8, "max_new_tokens": 150},
}
# Only with a tokenizer, which the servers in bfloat16 have not.
TEXT_FEATURES = {
    "least length": {"temperature": 1.0, "min_new_tokens": 20},
    "stop string": {"temperature": 0.8, "stop": ["ab", "x"]},
    "regex": {"temperature": 0.8, "regex": "(ab|cd)+x"},
    "schema": {"temperature": 0.8, "json_schema": SCHEMA},
}
AT_ONCE = [1, 5, 16]


def requests_of(features, epoch, samples):
    """Samples of every feature on prompts they share, every other one with log-probabilities."""
    shared = prompts(4, seed=120)
    wanted = []
    for i, options in enumerate(features.values()):
        for sample in range(samples):
            seed = None if options["temperature"] == 0 else 10_000 * epoch + 100 * i + sample
            request = body(shared[i % len(shared)], seed=seed, **options)
            if (i + sample) % 2:
                request |= {"return_logprob": True, "top_logprobs_num": 2}
            wanted.append(request)
    return wanted


@pytest.mark.parametrize(
    ("settings", "dtype"), SETTINGS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_the_matrix(servers, model, tmp_path, settings, dtype):
    plain = servers("plain", dtype)
    features = FEATURES | (TEXT_FEATURES if dtype == "float32" else {})
    environment = {f"SGLANG_DAS_{name}": value for name, value in settings.items()}
    with start_server(
        "das" if dtype == "float32" else "das-ids", model, tmp_path / "das.log", dtype=dtype, environment=environment
    ) as das:
        for epoch, at_once in enumerate(AT_ONCE):
            samples = 1 if at_once == 1 else 2  # one after the other takes long
            wanted = requests_of(features, epoch, samples)
            expected = plain.generate(wanted)
            # Without their own history (at first without any), with it, and with it a policy version older.
            for state in ("new", "seen", "flushed"):
                if state == "flushed":
                    das.post("/flush_cache")
                answers = das.generate(wanted, at_once=at_once)
                for name, reference, answer in zip(_names(features, samples), expected, answers, strict=True):
                    assert _same(reference, answer), (name, at_once, state)
        state = das.das()
        assert state["state"] == "on"
        assert state["accepted"] > 500


def _names(features, samples):
    return [name for name in features for _ in range(samples)]


def _same(reference, answer):
    """Tokens and end equal, log-probabilities to tolerance."""
    if (reference["output_ids"], _finish(reference)) != (answer["output_ids"], _finish(answer)):
        return False
    a, b = ([value for key in KEYS for value in figures(one["meta_info"].get(key))] for one in (reference, answer))
    return len(a) == len(b) and all(math.isclose(x, y, abs_tol=TOLERANCE) for x, y in zip(a, b, strict=True))


def _finish(answer):
    return answer["meta_info"]["finish_reason"]
