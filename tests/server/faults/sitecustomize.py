"""Breaks one part of DAS in every process of a test server. Put on PYTHONPATH by the tests.

`DAS_TEST_FAULT` is the path of a file. While it holds one of the PLACES, the code there raises; while it holds one
of the BIASES, the verifier's outputs are wrong in distribution, to show that the statistical test would notice; while
it holds one of the CHANGES, they are not those of plain decoding, to show that a comparison would notice. While it
holds CLOCK, every clock that DAS reads jumps to and fro by days.
"""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

FAULT = os.environ.get("DAS_TEST_FAULT", "")

# Name of a place: module of `sglang_das.engine`, or of the package, and what raises there.
PLACES = {
    "admission": ("engine.problems", "Problems", "admit"),
    "opening": ("engine.drafting", "Drafter", "_open"),
    "proposing": ("engine.drafting", "Drafter", "propose"),
    "tree": ("engine.drafting", None, "step"),
    "grammars": ("engine.grammars", None, "constrain"),
    "plan": ("policy", "Policy", "plan"),
    "width": ("policy", "Policy", "width"),
    "calibration": ("policy", "Policy", "observe_drafts"),
    "step time": ("policy", "Policy", "observe_step"),
    "distributions": ("engine.distributions", "Distributions", "read"),
    "closing": ("policy", "Policy", "close"),
    "learning": ("engine.drafting", "Drafter", "_end"),
    "policy version": ("engine.drafting", "Drafter", "cache_flushed"),
    "reporting": ("engine.drafting", "Drafter", "describe"),
    "native panic": ("engine.drafting", None, "step"),
    "verification": ("engine.worker", None, "sample_nodes"),
}
CLOCK = "clock"


def _break(worker):
    for place, (module, owner, name) in PLACES.items():
        _raise_at(place, sys.modules[f"sglang_das.{module}"], owner, name)
    for module in ("engine.worker", "engine.metrics", "engine.snapshot"):
        sys.modules[f"sglang_das.{module}"].time = _JumpingClock()
    original = worker.sample_nodes

    def sample_nodes(*arguments):
        return (BIASES | CHANGES).get(_fault(), _unbiased)(original, *arguments)

    worker.sample_nodes = sample_nodes


def _fault():
    return Path(FAULT).read_text()


def _raise_at(place, module, owner, name):
    holder = getattr(module, owner) if owner else module
    original = getattr(holder, name)

    def broken(*arguments, **named):
        if _fault() == place:
            raise (_Panic if place == "native panic" else RuntimeError)(f"injected into {place}")
        return original(*arguments, **named)

    setattr(holder, name, broken)


class _Panic(BaseException):
    """As native code's panics arrive in Python: none of the usual errors."""


class _JumpingClock:
    """The module `time`, with clocks that jump."""

    def __getattr__(self, name):
        import random
        import time

        value = getattr(time, name)
        if name in ("time", "monotonic", "perf_counter", "thread_time") and _fault() == CLOCK:
            return lambda: value() + random.choice([-1e6, 0.0, 1e6])
        return value


def _unbiased(original, *arguments):
    return original(*arguments)


def _ignore_temperature(original, batch, sampler, logits_output, positions, rows, masks):
    """Verify as the engine's NGRAM does on a CPU: argmax whatever the temperature."""
    best = logits_output.next_token_logits.argmax(-1).numpy().copy()
    sampled, distributions = original(batch, sampler, logits_output, positions, rows, masks)
    sampled.reshape(-1)[rows.nodes] = best
    return sampled, distributions


def _pad_with_duplicates(original, batch, sampler, logits_output, positions, rows, masks):
    """Verify as if drafts were padded with children of the root that all hold token 0, each with a try of its own."""
    import dataclasses

    import numpy as np

    tries = []
    for pad in range(4):
        output = dataclasses.replace(logits_output, next_token_logits=logits_output.next_token_logits.clone())
        tries.append(original(batch, sampler, output, positions + 1_000_003 * pad, rows, masks))
    sampled, distributions = tries[0]
    sampled[:, 0][(np.stack([again for again, _ in tries[1:]])[:, :, 0] == 0).any(axis=0)] = 0
    return sampled, distributions


def _keep_first_drafts(original, batch, sampler, logits_output, positions, rows, *more):
    """Keep every request's first draft, whatever was sampled."""
    sampled, distributions = original(batch, sampler, logits_output, positions, rows, *more)
    drafts = rows.tree.drafts
    if drafts.width > 1:
        first = drafts.sizes > 0
        sampled[first, 0] = drafts.tokens[first, 0]
    return sampled, distributions


def _sample_anything(original, *arguments):
    """Sample other tokens at every call: what is plain differs from itself."""
    import numpy as np

    sampled, distributions = original(*arguments)
    return np.random.default_rng().integers(2, 64, sampled.shape), distributions


CHANGES = {"changed: first drafts kept": _keep_first_drafts, "changed: anything sampled": _sample_anything}
BIASES = {"biased: argmax": _ignore_temperature, "biased: pads": _pad_with_duplicates}


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
