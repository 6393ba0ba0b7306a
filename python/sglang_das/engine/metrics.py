"""Counters of what DAS does, for the log, `/server_info` and each request's `meta_info`."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("sglang_das")


@dataclass
class Counters:
    """Totals since the server's start."""

    verify_steps: int = 0
    """Verify forwards, each of a whole batch."""
    request_steps: int = 0
    """Verify steps summed over requests: a request and step count one."""
    drafted: int = 0
    """Draft tokens proposed (and verified)."""
    accepted: int = 0
    """Draft tokens kept."""
    rows: int = 0
    """Rows the verify forwards computed: requests times width, or only roots and drafts where these are packed."""
    draft_cpu_s: float = 0.0
    """CPU seconds of drafting, learning and policy in the scheduler's thread."""
    rollouts: int = 0
    """Rollouts opened in the history."""
    failures: int = 0
    """Errors in drafting; the first one turns drafting off."""

    @property
    def tokens_per_step(self) -> float:
        """Tokens emitted per request and verify step: accepted drafts + 1."""
        return 1.0 + self.accepted / self.request_steps if self.request_steps else 1.0

    def describe(self) -> dict[str, Any]:
        """Plain values, with the derived ones."""
        return {**dataclasses.asdict(self), "tokens_per_step": round(self.tokens_per_step, 4)}


class PeriodicLog:
    """One log line every so often, with what happened since the last one."""

    def __init__(self, interval_s: float) -> None:
        """The first line comes `interval_s` seconds from now."""
        self._interval_s = interval_s
        self._next = time.monotonic() + interval_s
        self._last = Counters()

    def maybe(self, counters: Counters, state: str, why: Callable[[], str | None]) -> None:
        """Write the line if it is due; `why` says why the longest rollout has its budget."""
        now = time.monotonic()
        if self._next - self._interval_s <= now < self._next:  # a clock set back must not silence it
            return
        self._next = now + self._interval_s
        steps = counters.request_steps - self._last.request_steps
        if steps:
            drafted, accepted = counters.drafted - self._last.drafted, counters.accepted - self._last.accepted
            logger.info(
                "DAS %s: %.2f tokens per step, %d of %d drafts accepted, mean width %.1f, "
                "drafting %.2f ms of CPU a step. The longest rollout: %s",
                state,
                1 + accepted / steps,
                accepted,
                drafted,
                (counters.rows - self._last.rows) / steps,
                1e3
                * (counters.draft_cpu_s - self._last.draft_cpu_s)
                / max(counters.verify_steps - self._last.verify_steps, 1),
                why() or "not drafted for by the policy",
            )
        self._last = dataclasses.replace(counters)
