"""Drafters over a trace, one budget after another: in this process, or for the peers in one of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from ..policy import PolicyConfig
from . import ReplayError
from .control import ByPolicy, Control, FixedBudget, Latency
from .drafters import OURS, Das, Drafter, Nobody
from .peers import Arctic, Ngram
from .play import Clock, Played, Tick, play
from .read import read
from .trace import Trace

PLAIN = "plain"
POLICY = "policy"
"""The budget that means: as the policy decides."""


@dataclass(frozen=True)
class Setup:
    """What is played, and how."""

    files: list[str]
    history: tuple[int, int] | None = None
    """Rollouts of each problem, from and to, that are learned and not played."""
    held_out: tuple[int, int] | None = None
    """Those that are played then."""
    apart: bool = False
    """Whether each rollout is played alone, by a drafter that knows the history only."""
    cold: bool = False
    """Whether the first epoch is all that counts, and is played."""
    slots: int = 8
    floor: float = 0.0
    latency: Latency = field(default_factory=Latency)
    policy: str = PolicyConfig().arm
    """The policy's arm, for the budget `POLICY`."""
    policy_nodes: int = 15
    """Most nodes it may give a request."""

    def read(self) -> Trace:
        """The trace. Raises ReplayError as `read` does, or if nothing would be played."""
        trace = read([Path(file) for file in self.files])
        if self.history is not None and self.held_out is not None:
            trace = trace.split(slice(*self.history), slice(*self.held_out))
            if not len(trace) or trace.epochs[-1] == 0:
                raise ReplayError(f"--held-out {self.held_out[0]}:{self.held_out[1]} leaves no rollout to play")
        elif self.cold:
            first = trace.of_epoch(0)
            trace = trace.select(first, [0] * len(first), 0)
        return trace


@dataclass(frozen=True)
class Job:
    """One play of the trace."""

    drafter: str
    budget: int | str


def promises(drafter: str) -> bool:
    """Whether a drafter's drafts carry probabilities."""
    return not drafter.startswith("ngram")


def run(
    jobs: Sequence[Job], trace: Trace, setup: Setup, tick: Tick, clock: Clock = time.perf_counter
) -> Iterator[Played]:
    """Does one job after another, in this process."""
    for job in jobs:
        if not setup.apart:
            yield _play(job, trace, setup, tick, clock)
            continue
        learned = trace.of_epoch(0)
        parts = [_play(job, part, setup, tick, clock) for part in trace.apart()]
        names = [np.array([*learned, len(learned) + i]) for i in range(len(parts))]
        yield Played.join(parts, names)


def _play(job: Job, trace: Trace, setup: Setup, tick: Tick, clock: Clock) -> Played:
    control: Control
    if job.budget == POLICY:
        longest = int(trace.lengths.max())
        control = ByPolicy(setup.policy, setup.policy_nodes, longest, packed=setup.latency.packed)
    else:
        control = FixedBudget(int(job.budget), setup.floor)
    drafter = _drafter(job.drafter, trace, control.width)
    return play(trace, drafter, control, setup.slots, setup.latency, tick, clock)


def _drafter(name: str, trace: Trace, width: int) -> Drafter:
    if name == PLAIN:
        return Nobody()
    if name in OURS:
        return Das(trace, OURS[name], width)
    match name:
        case "arctic":
            return Arctic(trace, width)
        case "ngram-bfs" | "ngram-prob":
            return Ngram(trace, width, name.removeprefix("ngram-").upper())
    raise ValueError(f"no drafter is called {name!r}")


# --- processes ---


def missing(package: str, python: str) -> str | None:
    """Why a Python cannot run what comes from a package, or None."""
    if python == sys.executable:
        found = importlib.util.find_spec(package) is not None
    else:
        probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
        try:
            found = not subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode
        except OSError as error:
            return f"{python} does not start: {error}"
    return None if found else f"{python} has no package {package}"


def run_apart(jobs: Sequence[Job], setup: Setup, python: str, tick: Tick) -> list[Played]:
    """Does one job after another in a process of its own, under a Python that may be another.

    Raises ReplayError with the end of what it printed if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="das-replay-") as name:
        folder = Path(name)
        (folder / "sglang_das").symlink_to(Path(__file__).parents[1])  # nothing else of this environment
        (folder / "jobs.json").write_text(json.dumps({"jobs": [asdict(job) for job in jobs], "setup": asdict(setup)}))
        path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # for its compiler's helpers
        environment = os.environ | {"PYTHONPATH": name, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [python, "-m", "sglang_das.replay.worker", name]
        with (folder / "errors").open("w+") as errors, _process(command, environment, errors.fileno()) as process:
            assert process.stdout is not None, "it is a pipe"
            for line in process.stdout:
                if line.startswith("+") and line[1:-1].isdecimal():  # the packages print there too
                    tick(int(line))
            if process.wait():
                errors.seek(0)
                raise ReplayError(f"{jobs[0].drafter} failed under {python}:\n{errors.read()[-2000:].rstrip()}")
        return [Played.load(folder / f"{i}.npz") for i in range(len(jobs))]


@contextmanager
def _process(command: list[str], environment: dict[str, str], errors: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def from_folder(folder: Path) -> tuple[list[Job], Setup]:
    """The jobs that `run_apart` left there."""
    content = json.loads((folder / "jobs.json").read_text())
    setup = Setup(**content["setup"])
    return [Job(**job) for job in content["jobs"]], replace(setup, latency=Latency(**content["setup"]["latency"]))
