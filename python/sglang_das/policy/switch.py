"""The off-switch: speculation rests where it has measurably lost, and is tried again now and then.

The width is chosen from expectations, and expectations can be wrong. What counts is what came out: over the last
speculative steps of about this many requests, the tokens emitted would have taken plain decoding tokens / b * t(b,
1) seconds; the steps took sum t(b, W). Both times are the latency model's, whose medians no single slow step can
sway; the tokens are those emitted.
"""

from __future__ import annotations

from dataclasses import dataclass

from .latency import bucket

_KEEP = 0.98  # share of the evidence kept per speculative step
_EVIDENCE = 32  # speculative steps before a verdict
_LONGEST_REST = 32  # in units of the first rest


@dataclass(slots=True)
class _State:
    steps: int = 0  # speculative steps since the last rest
    plain: float = 0.0
    speculative: float = 0.0
    resting: int = 0  # steps of rest left
    rest: int = 1  # length of the next rest, in units of the first
    rests: int = 0


class OffSwitch:
    """Whether to draft at all, per bucket of live requests."""

    def __init__(self, rest: int) -> None:
        """Start switched on; ``rest`` is the length of the first rest in steps."""
        self._rest = rest
        self._states: dict[int, _State] = {}

    def is_on(self, requests: int) -> bool:
        """Whether the coming step of ``requests`` requests may speculate. Call once per step: it counts the rest."""
        state = self._states.get(bucket(requests))
        if state is None or not state.resting:
            return True
        state.resting -= 1
        return False

    def rest_left(self, requests: int) -> int:
        """Steps of rest left in batches of about this many requests."""
        state = self._states.get(bucket(requests))
        return state.resting if state else 0

    def observe(self, requests: int, plain_seconds: float, speculative_seconds: float) -> None:
        """A speculative step took ``speculative_seconds``; its tokens would have taken ``plain_seconds``."""
        state = self._states.setdefault(bucket(requests), _State())
        state.steps += 1
        state.plain = state.plain * _KEEP + plain_seconds
        state.speculative = state.speculative * _KEEP + speculative_seconds
        if state.steps < _EVIDENCE:
            return
        if state.plain >= state.speculative:
            state.rest = 1
            return
        state.resting = self._rest * state.rest
        state.rest = min(state.rest * 2, _LONGEST_REST)
        state.rests += 1
        state.steps, state.plain, state.speculative = 0, 0.0, 0.0

    @property
    def gain(self) -> float:
        """Measured speed-up of recent speculative steps over plain decoding, less one; 0 without evidence."""
        plain = sum(state.plain for state in self._states.values())
        speculative = sum(state.speculative for state in self._states.values())
        return plain / speculative - 1.0 if speculative else 0.0

    @property
    def rests(self) -> int:
        """How often speculation was turned off."""
        return sum(state.rests for state in self._states.values())
