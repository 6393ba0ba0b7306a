"""The joint distribution of the next tokens is the target's: of a rollout, of two samples of a prompt, of two requests,
of two replicas. Chi-square and KL tests; the same tests reject every verifier that is known to be wrong.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.goodness import ALPHA, chi_square, divergence

from . import verifiers
from .verifiers import joint

ROLLOUTS = 8000
LENGTH = 4
PAIRED = 2  # tokens of each of two rollouts


def admit(count, monkeypatch, nonce=None):
    """Seeds of the first requests of a server, which bring none of their own."""
    from sglang_das.cpu import seeds

    monkeypatch.setattr(seeds, "_nonce", nonce)
    monkeypatch.setattr(seeds, "_admitted", 0)
    requests = [SimpleNamespace(sampling_params=SimpleNamespace(sampling_seed=None)) for _ in range(count)]
    return np.array([seeds.seed_of(request) for request in requests])


# Requests come in fours: two samples of each of two prompts.
PROMPT = np.arange(ROLLOUTS) // 2 % 2
FIRST = np.arange(0, ROLLOUTS, 4)


def rollout_counts(tokens, temperature):
    """Of the tokens of single rollouts."""
    counts = [histogram(tokens[prompt == PROMPT], LENGTH) for prompt in (0, 1)]
    return np.array(counts), np.array([joint(temperature, prompt, LENGTH) / 2 for prompt in (0, 1)])


def pair_counts(first, second, temperature, prompts):
    """Of the tokens of two rollouts side by side, which must be independent."""
    both = np.concatenate([first[:, :PAIRED], second[:, :PAIRED]], axis=1)
    ours, theirs = (joint(temperature, prompt, PAIRED) for prompt in prompts)
    return histogram(both, 2 * PAIRED), np.multiply.outer(ours, theirs)


def next_counts(tokens, temperature):
    """Of each token after the two before it: fewer outcomes, so that a small bias shows."""
    prompts = np.array(verifiers.PROMPTS)[np.resize(PROMPT, len(tokens))]
    texts = np.concatenate([prompts, tokens], axis=1)
    counts = sum(histogram(texts[:, i : i + 3], 3) for i in range(tokens.shape[1]))
    expected = counts.sum(-1, keepdims=True) * verifiers.table(temperature).double().numpy()
    return counts, expected / expected.sum()


def histogram(tokens, length):
    counts = np.zeros([verifiers.VOCABULARY] * length, np.int64)
    np.add.at(counts, tuple(tokens[:, :length].T), 1)
    return counts


def p_values(temperature, monkeypatch, *, verify=verifiers.das, length=LENGTH, same=None, positions=None):
    """The p-values (chi-square, KL) of each thing looked at, with the noise of what `same` names used twice."""
    seeds = [admit(ROLLOUTS, monkeypatch, nonce=7 if same == "replicas" else None) for _ in range(2)]
    for mine in seeds:
        if same == "siblings":
            mine[FIRST + 1] = mine[FIRST]
        elif same == "requests":
            mine[FIRST + 2] = mine[FIRST]
    here, there = (
        verifiers.decode(verify, mine, PROMPT, length, temperature=temperature, positions=positions) for mine in seeds
    )
    looks = {
        "rollouts": rollout_counts(here, temperature),
        "next": next_counts(np.concatenate([here, there]), temperature),
        "siblings": pair_counts(here[FIRST], here[FIRST + 1], temperature, (0, 0)),
        "requests": pair_counts(here[FIRST], here[FIRST + 2], temperature, (0, 1)),
        "replicas": pair_counts(here[PROMPT == 0], there[PROMPT == 0], temperature, (0, 0)),
    }
    return {name: (chi_square(*look), divergence(*look)[0]) for name, look in looks.items()}


@pytest.fixture(params=[0.6, 1.0])
def temperature(request):
    return request.param


# The bias of shared noise is small: a few thousandths of a nat. It takes more tokens to see.
LONG = 16


@pytest.mark.parametrize(("verify", "length"), [("das", LENGTH), ("distinct_tree", LENGTH), ("ratio_test", LONG)])
def test_exact_verifiers_pass(temperature, verify, length, monkeypatch):
    found = p_values(temperature, monkeypatch, verify=getattr(verifiers, verify), length=length)
    assert min(min(pair) for pair in found.values()) > ALPHA, found


def test_drafts_are_kept(temperature, monkeypatch):
    emitted = []

    def verify(step):
        emitted.extend(kept := verifiers.das(step))
        return kept

    verifiers.decode(verify, admit(ROLLOUTS, monkeypatch), PROMPT, LENGTH, temperature=temperature)
    assert np.mean([len(tokens) for tokens in emitted]) > 1.4


@pytest.mark.parametrize(
    ("verify", "look", "length"),
    [
        ("argmax", "rollouts", LENGTH),
        ("padded_tree", "rollouts", LENGTH),
        ("ratio_test_with_shared_noise", "next", LONG),
    ],
)
def test_biased_verifiers_are_rejected(temperature, verify, look, length, monkeypatch):
    found = p_values(temperature, monkeypatch, verify=getattr(verifiers, verify), length=length)
    assert max(found[look]) < ALPHA, found


def always_the_same(base, depth):
    """One noise for all positions of a rollout."""
    return np.zeros_like(base[:, None] + depth)


def anew_at_every_step(base, depth):
    """Positions counted from the root of each draft."""
    return np.broadcast_to(depth, (len(base), depth.shape[1]))


@pytest.mark.parametrize("positions", [always_the_same, anew_at_every_step])
def test_noise_used_again_at_another_position_is_rejected(temperature, positions, monkeypatch):
    found = p_values(temperature, monkeypatch, positions=positions)
    assert max(found["rollouts"]) < ALPHA, found


@pytest.mark.parametrize("same", ["siblings", "requests", "replicas"])
def test_noise_shared_between_rollouts_is_rejected(temperature, same, monkeypatch):
    found = p_values(temperature, monkeypatch, same=same)
    assert max(found[same]) < ALPHA, found
