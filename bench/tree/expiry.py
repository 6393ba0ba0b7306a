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
WAIT_S = 300.0
"""How long expiry may take."""


class Drafting:
    """Live requests that append and draft in turn."""

    def __init__(self, structure: structures.Structure, workload: data.Workload) -> None:
        self._structure, self._texts = structure, workload.live[:DRAFTERS]
        for number, text in enumerate(self._texts):
            structure.open(number, workload.live_problems[number], text[:OPENED])

    def time(self, until: Callable[[], bool]) -> list[float]:
        """Microseconds of each draft until asked to stop."""
        times: list[float] = []
        at = OPENED
        while not until():
            for number, text in enumerate(self._texts):
                self._structure.append(number, text[at : at + STEP_TOKENS])
                start = time.perf_counter_ns()
                self._structure.draft(number)
                times.append((time.perf_counter_ns() - start) / 1e3)
            at = at + STEP_TOKENS if at + 2 * STEP_TOKENS <= data.LIVE_TOKENS else OPENED
        return times


def _store_history(workload: data.Workload) -> tuple[structures.Structure, Callable[[], None]]:
    """Even rollouts as one generation, odd ones as the next, a window of two: a third generation lets the first go."""
    history = structures.DasHistory(window=2)
    count = len(workload.stored)
    for first in range(2):
        for number in range(first, count, 2):
            history.store(number, workload.problems[number], workload.stored[number])
        history.history.advance()
    leaving = len(range(0, count, 2))

    def expire() -> None:
        for problem in dict.fromkeys(workload.problems):
            history.history.rollout(problem).close()
        end = time.monotonic() + WAIT_S
        while history.history.stats()["expired_rollouts"] < leaving:
            if time.monotonic() > end:
                raise TimeoutError(f"expiry takes more than {WAIT_S:.0f} s")
            time.sleep(0.001)

    return history, expire


def _store_arctic(workload: data.Workload) -> tuple[structures.Structure, Callable[[], None]]:
    arctic = structures.Arctic()
    for number, tokens in enumerate(workload.stored):
        arctic.store(number, workload.problems[number], tokens)

    def expire() -> None:
        for number in range(0, len(workload.stored), 2):
            arctic.remove(number)

    return arctic, expire


def measure(name: str, workload: data.Workload) -> dict[str, Any]:
    """The figures of one case: `draft_us_*` of drafts during expiry, `alone_us_*` of those before."""
    structure, expire = {"das-history": _store_history, "arctic": _store_arctic}[name](workload)
    drafting = Drafting(structure, workload)
    end = time.monotonic() + ALONE_S
    alone = drafting.time(lambda: time.monotonic() > end)
    before = resident()
    leaver = threading.Thread(target=expire)
    start = time.perf_counter()
    leaver.start()
    during = drafting.time(lambda: not leaver.is_alive())
    expire_s = time.perf_counter() - start
    leaver.join()
    leaving = sum(map(len, workload.stored[::2]))
    return {
        "expire_ms": expire_s * 1e3,
        "expired_tokens": leaving,
        "returned_bytes_per_token": (before - resident()) / leaving,
        **_latencies("alone_us", alone),
        **_latencies("draft_us", during),
    }


def _latencies(name: str, times: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50": float(np.percentile(times, 50)),
        f"{name}_p99": float(np.percentile(times, 99)),
        f"{name}_max": max(times),
    }
