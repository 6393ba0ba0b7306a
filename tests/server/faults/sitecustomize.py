"""Breaks one part of DAS in every process of a test server, as `DAS_TEST_FAULT` says. Put on PYTHONPATH by the tests.

Faults named `raise:<where>` make the drafter raise there; `biased:<how>` replaces the verifier by one whose outputs are
wrong in distribution, to show that the statistical test would notice.
"""

import importlib.abc
import importlib.util
import os
import sys

if os.environ.get("DAS_TEST_FAULT", "").startswith("biased"):
    import dataclasses

    import numpy as np

FAULT = os.environ.get("DAS_TEST_FAULT", "")
AFTER_CALLS = int(os.environ.get("DAS_TEST_FAULT_AFTER", "0"))


def _raise_in(owner, name):
    original, calls = getattr(owner, name), [0]

    def broken(*arguments, **named):
        calls[0] += 1
        if calls[0] > AFTER_CALLS:
            raise RuntimeError(f"injected into {name}")
        return original(*arguments, **named)

    setattr(owner, name, broken)


def _break(worker):
    kind, _, detail = FAULT.partition(":")
    if kind == "raise":
        drafting = sys.modules["sglang_das.engine.drafting"]
        owner = {
            "propose": drafting.Drafter,
            "observe": drafting.Drafter,
            "finish": drafting.Drafter,
            "step": drafting,
            "plan": drafting.Policy,
            "width": drafting.Policy,
            "observe_step": drafting.Policy,
            "observe_drafts": drafting.Policy,
        }[detail]
        _raise_in(owner, detail)
    elif FAULT == "biased:argmax":
        _ignore_temperature(worker)
    elif FAULT == "biased:pads":
        _pad_with_duplicates(worker)


def _ignore_temperature(worker):
    """Verify as the engine's NGRAM does on a CPU: argmax whatever the temperature."""
    original = worker.sample_nodes

    def sample_nodes(batch, sampler, logits_output, positions, tree):
        best = logits_output.next_token_logits.argmax(-1).numpy().reshape(tree.depth.shape).copy()
        original(batch, sampler, logits_output, positions, tree)
        return best

    worker.sample_nodes = sample_nodes


def _pad_with_duplicates(worker):
    """Verify as if drafts were padded with children of the root that all hold token 0, each with a try of its own."""
    original, pads = worker.sample_nodes, 3

    def sample_nodes(batch, sampler, logits_output, positions, tree):
        tries = []
        for pad in range(pads + 1):
            output = dataclasses.replace(logits_output, next_token_logits=logits_output.next_token_logits.clone())
            tries.append(original(batch, sampler, output, positions + 1_000_003 * pad, tree))
        sampled = tries[0]
        sampled[:, 0][(np.stack(tries[1:])[:, :, 0] == 0).any(axis=0)] = 0
        return sampled

    worker.sample_nodes = sample_nodes


class _BreakOnImport(importlib.abc.MetaPathFinder):
    """Breaks the worker's module right after it has been imported."""

    def find_spec(self, name, path, target=None):
        if name != "sglang_das.engine.worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            _break(module)

        spec.loader.exec_module = exec_module
        return spec


if FAULT:
    sys.meta_path.insert(0, _BreakOnImport())
