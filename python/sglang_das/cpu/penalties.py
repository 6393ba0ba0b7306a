"""Penalties in a fixed order: frequency, presence, least length, repetition.

SGLang applies them in the order of a set of classes, which is that of their addresses: from one server process to the
next a repetition penalty may come before or after a frequency penalty, which gives other tokens. This is the order of
its speculative decoding.
"""

from typing import Any

_ORDER = (
    "BatchedFrequencyPenalizer",
    "BatchedPresencePenalizer",
    "BatchedMinNewTokensPenalizer",
    "BatchedRepetitionPenalizer",
)


def order(info: Any) -> None:
    """Orders the penalizers of a `SamplingBatchInfo`."""
    penalizers = info.penalizer_orchestrator.penalizers
    info.penalizer_orchestrator.penalizers = dict(
        sorted(penalizers.items(), key=lambda item: _ORDER.index(item[0].__name__))
    )
