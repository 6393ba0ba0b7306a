"""A generation leaves while live requests append and draft: how long that takes, what they notice, what returns."""

import resource
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from . import data, structures
from .worker import DRAFTERS, OPENED, STEP_TOKENS, resident

ALONE_S = 3.0
"""How long calls are timed before anything leaves."""
PAUSE_S = 0.003
"""Between two rounds of calls, which are the steps of an engine."""

Leave = Callable[[], None]


class Latencies:
    """Microseconds of each call, and whether the scheduler took the core away meanwhile, for something else. A
    wait for a lock is no such thing.
    """

    def __init__(self) -> None:
        self._times: list[float] = []
        self._preempted: list[bool] = []

    def __len__(self) -> int:
        return len(self._times)

    def time(self, call: Callable[[], object]) -> None:
        """Makes a call and notes how long it took."""
        switches = _switches()
        start = time.perf_counter_ns()
        call()
        self._times.append((time.perf_counter_ns() - start) / 1e3)
        self._preempted.append(_switches() > switches)

    def figures(self, name: str) -> dict[str, float]:
        """The median, the 99th percentile, the longest, the longest of those not preempted, and how many were."""
        kept = (taken for taken, preempted in zip(self._times, self._preempted, strict=True) if not preempted)
        return {
            f"{name}_us_p50": float(np.percentile(self._times, 50)),
            f"{name}_us_p99": float(np.percentile(self._times, 99)),
            f"{name}_us_max": max(self._times),
            f"{name}_kept_us_max": max(kept, default=0.0),
            f"{name}_preempted": sum(self._preempted),
        }


def _switches() -> int:
    """How often this thread has lost its core."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


class Live:
    """Live requests that append and draft in turn."""

    def __init__(self, structure: structures.Structure, workload: data.Workload) -> None:
        self._structure, self._texts = structure, workload.live[:DRAFTERS]
        for number, text in enumerate(self._texts):
            structure.open(number, workload.live_problems[number], text[:OPENED])

    def time(self, is_over: Callable[[], bool]) -> tuple[Latencies, Latencies]:
        """Appends and drafts, in whole rounds, one at least."""
        appends, drafts = Latencies(), Latencies()
        at = OPENED
        while not len(drafts) or not is_over():
            for number, text in enumerate(self._texts):
                appends.time(partial(self._structure.append, number, text[at : at + STEP_TOKENS]))
                drafts.time(partial(self._structure.draft, number))
            time.sleep(PAUSE_S)
            at = at + STEP_TOKENS if at + 2 * STEP_TOKENS <= data.LIVE_TOKENS else OPENED
        return appends, drafts

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
    """The figures of one case: `append_*` and `draft_*` of calls made while the generation leaves, `alone_*` of those
    before. The trees that live requests run in are theirs until they end: memory is measured after that.
    """
    structure, leave = _store_arctic(workload) if name == "arctic" else store_history(workload)
    live = Live(structure, workload)
    end = time.monotonic() + ALONE_S
    alone_appends, alone_drafts = live.time(lambda: time.monotonic() > end)
    before = resident()
    leaver = threading.Thread(target=leave)
    start = time.perf_counter()
    leaver.start()
    appends, drafts = live.time(lambda: not leaver.is_alive())
    leaver.join()
    expire_s = time.perf_counter() - start
    live.close()
    if isinstance(structure, structures.DasHistory):
        structure.history.advance()
        structure.history.maintain()
    leaving, after = sum(map(len, workload.stored[::2])), resident()
    return {
        "expire_ms": expire_s * 1e3,
        "expired_tokens": leaving,
        "resident_before_mb": before / 1e6,
        "resident_after_mb": after / 1e6,
        "returned_bytes_per_token": (before - after) / leaving,
        "drafts_meanwhile": len(drafts),
        "drafts_alone": len(alone_drafts),
        **alone_drafts.figures("alone"),
        **alone_appends.figures("alone_append"),
        **drafts.figures("draft"),
        **appends.figures("append"),
    }
