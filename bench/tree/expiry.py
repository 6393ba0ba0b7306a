"""Half of the stored tokens leave while live requests draft: how long it takes, and what the drafts notice."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import data, structures
from .worker import DRAFTERS, OPENED, STEP_TOKENS, resident

ALONE_S = 1.0
"""How long drafts are timed before anything leaves."""
PAUSE_S = 0.003
"""Between two rounds of drafts, which are the steps of an engine."""

Leave = Callable[[], None]


class Drafting:
    """Live requests that append and draft in turn."""

    def __init__(self, structure: structures.Structure, workload: data.Workload) -> None:
        self._structure, self._texts = structure, workload.live[:DRAFTERS]
        for number, text in enumerate(self._texts):
            structure.open(number, workload.live_problems[number], text[:OPENED])

    def time(self, is_over: Callable[[], bool]) -> list[float]:
        """Microseconds of each draft, in whole rounds, one at least."""
        times: list[float] = []
        at = OPENED
        while not times or not is_over():
            for number, text in enumerate(self._texts):
                self._structure.append(number, text[at : at + STEP_TOKENS])
                start = time.perf_counter_ns()
                self._structure.draft(number)
                times.append((time.perf_counter_ns() - start) / 1e3)
            time.sleep(PAUSE_S)
            at = at + STEP_TOKENS if at + 2 * STEP_TOKENS <= data.LIVE_TOKENS else OPENED
        return times

    def close(self) -> None:
        """Ends the live requests."""
        for number in range(len(self._texts)):
            self._structure.close(number)


def store_history(workload: data.Workload) -> tuple[structures.DasHistory, Leave]:
    """Even rollouts as one generation, odd ones as the next, a window of two: a third generation lets the first go."""
    structure = structures.DasHistory(window=2)
    count = len(workload.stored)
    for number in [*range(0, count, 2), *range(1, count, 2)]:
        if number == 1:
            structure.history.advance()
        structure.store(number, workload.problems[number], workload.stored[number])

    def leave() -> None:
        structure.history.advance()
        structure.history.maintain()

    return structure, leave


def _store_arctic(workload: data.Workload) -> tuple[structures.Structure, Leave]:
    structure = structures.Arctic()
    count = len(workload.stored)
    for number in range(count):
        structure.store(number, workload.problems[number], workload.stored[number])

    def leave() -> None:
        for number in range(0, count, 2):
            structure.remove(number)

    return structure, leave


def measure(name: str, workload: data.Workload) -> dict[str, Any]:
    """The figures of one case: `draft_us_*` of drafts during expiry, `alone_us_*` of those before. What the live
    requests themselves hold on to is given back at their end: `returned_bytes_per_token` is measured after that.
    """
    structure, leave = _store_arctic(workload) if name == "arctic" else store_history(workload)
    drafting = Drafting(structure, workload)
    end = time.monotonic() + ALONE_S
    alone = drafting.time(lambda: time.monotonic() > end)
    before = resident()
    leaver = threading.Thread(target=leave)
    start = time.perf_counter()
    leaver.start()
    during = drafting.time(lambda: not leaver.is_alive())
    leaver.join()
    expire_s = time.perf_counter() - start
    drafting.close()
    if isinstance(structure, structures.DasHistory):
        structure.history.advance()
        structure.history.maintain()
    leaving = sum(map(len, workload.stored[::2]))
    return {
        "expire_ms": expire_s * 1e3,
        "expired_tokens": leaving,
        "returned_bytes_per_token": (before - resident()) / leaving,
        "drafts_meanwhile": len(during),
        **_latencies("alone_us", alone),
        **_latencies("draft_us", during),
    }


def _latencies(name: str, times: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50": float(np.percentile(times, 50)),
        f"{name}_p99": float(np.percentile(times, 99)),
        f"{name}_max": max(times),
    }
