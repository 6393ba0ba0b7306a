"""Measures one structure on one workload, in a process of its own: `bench.tree.worker CASE.json RESULT.json`."""

import ctypes
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from . import data, structures

STEP_TOKENS = 3
"""Tokens a live request accepts per step."""
OPENED = 256
"""Tokens a live request has said when it is opened."""
DRAFTERS = 64
"""Live requests whose single drafts are timed, for `DRAFT_STEPS` steps each."""
DRAFT_STEPS = 30
BATCHES = {64: 30, 256: 15}
"""Batch sizes, and how many steps of each are timed."""


def resident() -> int:
    """Bytes of memory the process holds, after giving back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Live:
    """The live requests' tokens still to come, in steps."""

    def __init__(self, workload: data.Workload) -> None:
        self._texts = np.stack([text[: data.LIVE_TOKENS] for text in workload.live])
        self._at = OPENED

    def next(self) -> data.Tokens:
        """[live requests, tokens of a step]"""
        step = self._texts[:, self._at : self._at + STEP_TOKENS]
        self._at += STEP_TOKENS
        return step


def store(structure: structures.Structure, workload: data.Workload, numbers: Iterable[int]) -> None:
    """Stores some of the rollouts."""
    for number in numbers:
        structure.store(number, workload.problems[number], workload.stored[number])


class Appender(threading.Thread):
    """Stores rollouts over and over beside what is measured, until told to stop."""

    def __init__(self, structure: structures.Structure, workload: data.Workload) -> None:
        super().__init__()
        self._structure, self._workload = structure, workload
        self._stop_asked = threading.Event()
        self.tokens = 0

    def run(self) -> None:
        """What the thread does."""
        number = len(self._workload.stored)
        while not self._stop_asked.is_set():
            live = number % len(self._workload.live)
            text = self._workload.live[live]
            self._structure.store(number, self._workload.live_problems[live], text)
            self.tokens += len(text)
            number += 1

    def stop(self) -> None:
        """Ends the thread and waits for it."""
        self._stop_asked.set()
        self.join()


def time_drafts(structure: structures.Structure, live: Live) -> list[float]:
    """Microseconds of each single draft."""
    times = []
    for _ in range(DRAFT_STEPS):
        tokens = live.next()
        for number in range(DRAFTERS):
            structure.append(number, tokens[number])
            start = time.perf_counter_ns()
            structure.draft(number)
            times.append((time.perf_counter_ns() - start) / 1e3)
    return times


def time_steps(structure: structures.Structure, live: Live, count: int, steps: int) -> list[float]:
    """Milliseconds of each engine step."""
    times = []
    for _ in range(steps):
        tokens = np.ascontiguousarray(live.next()[:count])
        start = time.perf_counter_ns()
        structure.step(count, tokens)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def measure(name: str, workload: data.Workload, threads: int) -> dict[str, Any]:
    """The figures of one case. With two threads both store halves of the rollouts, and later one stores more while the
    other drafts; then the native helpers take part in the engine steps, as far as there are cores. With one, ours are
    held to one core, or the helpers would not be idle.
    """
    if threads == 1 and name.startswith("das"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    numbers = range(len(workload.stored))
    before = resident()
    structure = structures.make(name, workload.tokens)
    start, start_cpu = time.perf_counter(), time.process_time()
    if threads == 1:
        store(structure, workload, numbers)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: store(structure, workload, numbers[part::threads]), range(threads)))
    append_s, append_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    grown, own = resident() - before, structure.memory_usage()

    for number, text in enumerate(workload.live):
        structure.open(number, workload.live_problems[number], text[:OPENED])
    live = Live(workload)
    appender = Appender(structure, workload) if threads > 1 else None
    if appender:
        appender.start()
    drafts = time_drafts(structure, live)
    if appender:
        appender.stop()
    steps = {count: time_steps(structure, live, count, times) for count, times in BATCHES.items()}
    return {
        "append_ns_per_token": append_s * 1e9 / workload.tokens,
        "append_cpu_ns_per_token": append_cpu_s * 1e9 / workload.tokens,
        "bytes_per_token": grown / workload.tokens,
        "own_bytes_per_token": None if own is None else own / workload.tokens,
        "draft_us_p50": float(np.percentile(drafts, 50)),
        "draft_us_p99": float(np.percentile(drafts, 99)),
        "draft_us_max": max(drafts),
        "appended_meanwhile": appender.tokens if appender else 0,
    } | {f"step{count}_ms": statistics.median(times) for count, times in steps.items()}


def main() -> None:
    """Runs the case in the first file and writes its figures to the second."""
    case = json.loads(Path(sys.argv[1]).read_text())
    traces = Path(case["traces"]) if case["traces"] else None
    leaves = case["case"] == "expiry"  # as many tokens as leave stay
    workload = data.make(case["data"], case["tokens"] * (1 + leaves), traces)
    if leaves:
        from . import expiry

        figures = expiry.measure(case["structure"], workload)
    elif case["case"] == "snapshot":
        from . import snapshot

        figures = snapshot.measure(workload)
    else:
        figures = measure(case["structure"], workload, case["threads"])
    Path(sys.argv[2]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
