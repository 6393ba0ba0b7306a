"""Thousands of random requests, as mixed as clients can send them, for the soak test.

Everything about a request follows from its number, so that two servers get the same ones.
"""

import json

import numpy as np
from sglang.srt.sampling.custom_logit_processor import DeepseekOCRNoRepeatNGramLogitProcessor

from .support import LETTERS, body

VOCABULARY = 256
NO_REPEAT = DeepseekOCRNoRepeatNGramLogitProcessor.to_str()


def prompt_pool(count=60):
    """Prompts that come back, of 9 to 60 tokens."""
    random = np.random.default_rng(1)
    return [random.integers(2, VOCABULARY, length).tolist() for length in random.integers(9, 60, count)]


def make_request(number, pool):
    """Request `number` of the soak: about one in eight is greedy, one in four a prompt seen once."""
    random = np.random.default_rng([2, number])
    prompt = pool[random.integers(len(pool))]
    if random.random() < 0.25:
        prompt = random.integers(2, VOCABULARY, random.integers(3, 90)).tolist()
    request = body(
        prompt,
        seed=int(random.integers(-(2**62), 2**62)),
        temperature=float(random.choice([0, 0.5, 0.8, 0.8, 1.0, 1.0, 1.3, 0.8])),
        max_new_tokens=int(random.choice([1, 2, 5, 17, 40, 60, 90])),
        ignore_eos=bool(random.random() < 0.3),
        **_filters(random),
        **_stops(random),
    )
    sampling = request["sampling_params"]
    sampling |= _features(random, sampling["max_new_tokens"])
    if "custom_params" in sampling:
        request["custom_logit_processor"] = NO_REPEAT
    if random.random() < 0.3:
        request |= {"return_logprob": True, "top_logprobs_num": int(random.choice([0, 2]))}
        if random.random() < 0.3:
            request |= {"logprob_start_len": 0, "token_ids_logprob": [2, 3, 77]}
    request["priority"] = int(random.choice([0, 0, 0, 10]))
    return request


def _filters(random):
    """Not top-k 1 at a temperature: whether the plain server's log-probabilities know of that depends on the batch."""
    return {
        **({"top_k": int(random.integers(2, 60))} if random.random() < 0.2 else {}),
        **({"top_p": float(random.uniform(0.5, 1))} if random.random() < 0.2 else {}),
        **({"min_p": float(random.uniform(0, 0.1))} if random.random() < 0.1 else {}),
    }


def _stops(random):
    return {
        **({"stop_token_ids": random.integers(2, VOCABULARY, 2).tolist()} if random.random() < 0.1 else {}),
        **({"stop": ["".join(random.choice(list(LETTERS), 2)), "ab", "x"]} if random.random() < 0.1 else {}),
    }


def _features(random, max_new_tokens):
    """What looks back on the tokens emitted, for about one request in three, and two of these at once for some."""
    kinds = [
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
        {"repetition_penalty": 1.2},
        {"logit_bias": {str(token): float(random.uniform(-3, 3)) for token in random.integers(2, VOCABULARY, 4)}},
        {"custom_params": {"ngram_size": 2, "window_size": 30}},
    ]
    grammars = [
        {"regex": "[a-f]+x?"},
        {"regex": "([a-p]{3,9}[A-F])+"},
        {"json_schema": json.dumps({"type": "object", "properties": {"k": {"enum": ["a", "b"]}}})},
        {"ebnf": 'root ::= [a-m]+ ("1" | "2") [n-z]*'},
    ]
    chosen = {}
    if random.random() < 0.25:
        chosen |= kinds[random.integers(len(kinds))]
    if random.random() < 0.12 and "custom_params" not in chosen:  # which could forbid all that a grammar allows
        chosen |= grammars[random.integers(len(grammars))]
    elif random.random() < 0.06:  # nor with a grammar, whose end it could forbid
        chosen["min_new_tokens"] = min(int(random.integers(1, 40)), max_new_tokens)
    return chosen


FEATURES = (
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "min_new_tokens"),
    *("custom_params", "regex", "json_schema", "ebnf"),
)


def depends_on_retraction(request):
    """Whether the plain server samples differently after a retraction: it then counts tokens from zero again."""
    counting = {"frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens"}
    return bool(counting & set(request["sampling_params"]))


def tokens_and_text(answer):
    """What must be the same."""
    reason = answer["meta_info"]["finish_reason"]
    return answer["output_ids"], answer["text"], reason, answer["meta_info"]["completion_tokens"]


def log_probabilities(answer):
    """All log-probabilities of an answer as `[(token, value), ...]`, input ones included."""
    meta = answer["meta_info"]
    pairs = []
    for key in ("input_token_logprobs", "output_token_logprobs"):
        pairs += [(entry[1], entry[0]) for entry in meta.get(key) or []]
    for key in ("input_top_logprobs", "output_top_logprobs", "input_token_ids_logprobs", "output_token_ids_logprobs"):
        pairs += [(entry[1], entry[0]) for row in meta.get(key) or [] for entry in row or []]
    return pairs
