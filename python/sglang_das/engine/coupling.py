"""What is known of the noise a request will be sampled with.

Sampling is Gumbel-max: the token is the argmax of log p + noise(seed, position, token), and the noise does not depend
on what is drafted. Where it is known, a drafter can draft what the target will pick, not merely what is likely; the
verification stays as it is, so no output changes (Daliri, Musco, Suresh, arXiv 2408.07978).

Torch-free, like everything the drafter uses.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple


class Coupling(IntEnum):
    """The codes that `sglang_das.step` takes."""

    BLIND = 0
    """The noise is not known, or not keyed by token ids."""
    GREEDY = 1
    """There is none: the target takes its most probable token."""
    SEEDED = 2
    """It is that of the request's seed, keyed by token ids."""


class Noise(NamedTuple):
    """A request's noise; the same from its first step to its last."""

    coupling: Coupling
    seed: int = 0


NoiseOf = Callable[[Any], Noise]
"""What is known of the noise of an engine's request (`Req`)."""


def unknown(request: Any) -> Noise:
    """Under a sampler whose noise has no seed."""
    return Noise(Coupling.GREEDY if request.sampling_params.top_k == 1 else Coupling.BLIND)


def of_deterministic_engine(request: Any) -> Noise:
    """Under the engine's own sampler in deterministic mode (`SamplingBatchInfo.from_schedule_batch`).

    Filters of any request in the batch key the noise of all of them by rank.
    """
    sampling = request.sampling_params
    if sampling.top_k == 1:
        return Noise(Coupling.GREEDY)
    return Noise(Coupling.SEEDED, 42 if sampling.sampling_seed is None else sampling.sampling_seed)


def of_rowwise_sampler(request: Any) -> Noise:
    """Under the CPU engine's sampler (`sglang_das.cpu.sampler`), which decides row by row.

    Top-k or top-p together with a seed of the request's own key the noise by rank.
    """
    from sglang.srt.sampling.sampling_params import TOP_K_ALL

    from sglang_das.cpu.seeds import seed_of

    sampling = request.sampling_params
    if sampling.top_k == 1:
        return Noise(Coupling.GREEDY)
    filtered = sampling.top_k != TOP_K_ALL or sampling.top_p != 1.0
    if filtered and sampling.sampling_seed is not None and not sampling.min_p > 0.0:
        return Noise(Coupling.BLIND)
    return Noise(Coupling.SEEDED, seed_of(request))
