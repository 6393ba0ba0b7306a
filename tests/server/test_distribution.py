"""At temperature 1 the joint distribution of the next tokens is the target's, drafts or not.

The vocabulary is tiny, so the exact probability of every outcome is known, and the same test must reject two verifiers
that are wrong in ways real ones have been: one that ignores the temperature, one that pads with duplicate children.
"""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from .faults.sitecustomize import BIASES
from .support import EOS, body, build_model

VOCABULARY = 6
TOKENS = 4
ROLLOUTS = 1500
# False alarm once in ten thousand runs.
ALPHA = 1e-4


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("tiny"), vocabulary=VOCABULARY, sharpness=1.2, seed=3)


PROMPT = [2, 3, 4, 5, 2, 4, 3, 5, 5, 2]


def exact_probabilities(model):
    """Probability of every sequence of TOKENS tokens after the prompt, the end token treated as any other."""
    import torch
    from transformers import LlamaForCausalLM

    network = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    outcomes = list(product(range(VOCABULARY), repeat=TOKENS))
    inputs = torch.tensor([[*PROMPT, *outcome] for outcome in outcomes])
    with torch.no_grad():
        logs = torch.log_softmax(network(inputs).logits.double(), -1)
    first = len(PROMPT) - 1
    chosen = sum(logs[torch.arange(len(outcomes)), first + t, inputs[:, first + 1 + t]] for t in range(TOKENS))
    return dict(zip(outcomes, chosen.exp().tolist(), strict=True))


def p_value(counts, probabilities):
    """Chi-square test with outcomes of small expectation pooled."""
    from scipy.stats import chi2

    total = sum(counts.values())
    ordered = sorted(probabilities, key=probabilities.get, reverse=True)
    observed, expected, pool_observed, pool_expected = [], [], 0, 0.0
    for outcome in ordered:
        if total * probabilities[outcome] >= 8:
            observed.append(counts[outcome])
            expected.append(total * probabilities[outcome])
        else:
            pool_observed += counts[outcome]
            pool_expected += total * probabilities[outcome]
    observed, expected = np.array([*observed, pool_observed]), np.array([*expected, pool_expected])
    return float(chi2.sf(((observed - expected) ** 2 / expected).sum(), len(observed) - 1))


def sample(client):
    """Counts of the first TOKENS tokens over many rollouts without seeds; checks that drafting was at work."""
    request = body(PROMPT, temperature=1.0, max_new_tokens=TOKENS + 6, ignore_eos=True)
    client.generate([request] * 64)  # history to draft from
    before = client.das()
    rollouts = client.tokens([request] * ROLLOUTS)
    after = client.das()
    assert after["accepted"] - before["accepted"] > ROLLOUTS / 4, "too few drafts for the test to mean anything"
    return Counter(tuple(tokens[:TOKENS]) for tokens in rollouts)


@pytest.fixture(scope="module")
def fault(tmp_path_factory):
    return tmp_path_factory.mktemp("fault") / "bias"


@pytest.fixture(scope="module")
def das(tiny_model, faulty_server, fault, tmp_path_factory):
    fault.write_text("none")
    with faulty_server(fault, tmp_path_factory.mktemp("logs") / "das.log", model=tiny_model) as client:
        yield client


def test_outputs_have_the_target_distribution(tiny_model, das):
    assert p_value(sample(das), exact_probabilities(tiny_model)) > ALPHA


@pytest.mark.parametrize("bias", BIASES)
def test_the_test_rejects_biased_verifiers(tiny_model, das, fault, bias):
    fault.write_text(bias)
    assert p_value(sample(das), exact_probabilities(tiny_model)) < ALPHA


def test_the_end_token_is_not_special_here():
    assert EOS < VOCABULARY
