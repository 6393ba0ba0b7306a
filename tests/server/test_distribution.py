"""The joint distribution of the next tokens that a server emits is the target's, drafts or not.

The vocabulary is tiny, so the exact probability of every outcome is known, and the same test must reject two verifiers
that are wrong in ways real ones have been: one that ignores the temperature, one that pads with duplicate children.
More of them, and noise used twice, without a server: `tests/cpu/test_joint_distribution.py`.
"""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from tests.goodness import ALPHA, chi_square, divergence

from .faults.sitecustomize import BIASES
from .support import EOS, body, build_model

VOCABULARY = 6
TOKENS = 4
ROLLOUTS = 1500


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("tiny"), vocabulary=VOCABULARY, sharpness=1.2, seed=3)


PROMPT = [2, 3, 4, 5, 2, 4, 3, 5, 5, 2]


def exact_probabilities(model, temperature):
    """Probability of every sequence of TOKENS tokens after the prompt, the end token treated as any other."""
    import torch
    from transformers import LlamaForCausalLM

    network = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    outcomes = list(product(range(VOCABULARY), repeat=TOKENS))
    inputs = torch.tensor([[*PROMPT, *outcome] for outcome in outcomes])
    with torch.no_grad():
        logs = torch.log_softmax(network(inputs).logits.double() / temperature, -1)
    first = len(PROMPT) - 1
    chosen = sum(logs[torch.arange(len(outcomes)), first + t, inputs[:, first + 1 + t]] for t in range(TOKENS))
    return dict(zip(outcomes, chosen.exp().tolist(), strict=True))


def p_values(client, model, temperature):
    """Chi-square and KL test of the first TOKENS tokens over many rollouts without seeds; drafting must be at work."""
    request = body(PROMPT, temperature=temperature, max_new_tokens=TOKENS + 6, ignore_eos=True)
    client.generate([request] * 64)  # history to draft from
    before = client.das()
    seen = Counter(tuple(tokens[:TOKENS]) for tokens in client.tokens([request] * ROLLOUTS))
    after = client.das()
    assert after["accepted"] - before["accepted"] > ROLLOUTS / 4, "too few drafts for the test to mean anything"
    exact = exact_probabilities(model, temperature)
    counts, probabilities = np.array([seen[outcome] for outcome in exact]), np.array(list(exact.values()))
    return chi_square(counts, probabilities), divergence(counts, probabilities)[0]


@pytest.fixture(scope="module")
def fault(tmp_path_factory):
    return tmp_path_factory.mktemp("fault") / "bias"


@pytest.fixture(scope="module")
def das(tiny_model, faulty_server, fault, tmp_path_factory):
    fault.write_text("none")
    with faulty_server(fault, tmp_path_factory.mktemp("logs") / "das.log", model=tiny_model) as client:
        yield client


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_outputs_have_the_target_distribution(tiny_model, das, temperature):
    assert min(p_values(das, tiny_model, temperature)) > ALPHA


@pytest.mark.parametrize("bias", BIASES)
def test_the_test_rejects_biased_verifiers(tiny_model, das, fault, bias):
    fault.write_text(bias)
    assert max(p_values(das, tiny_model, 1.0)) < ALPHA


def test_the_end_token_is_not_special_here():
    assert EOS < VOCABULARY
