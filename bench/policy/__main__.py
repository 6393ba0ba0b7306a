"""Command line of `python -m bench.policy`: simulates every case under every arm, and shows makespans."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import report
from .oracle import oracles
from .recordings import recorded
from .simulation import COSTS, PolicyArm, simulate
from .workloads import Epoch, Workload

ARMS = ("das", "das-classes", "das-budget", "das-printed", "unlimited", "fixed:1", "fixed:3")
BATCHES = (1, 8, 32, 128, 256)
EPOCHS = 3
QUEUE = 4  # recorded rollouts per slot, as far as there are so many; synthetic ones all run at once, as in the paper
WORKLOADS = {
    "synthetic": Workload(),
    # The drafter claims what is right in a tenth of cases to be so in a third.
    "unpredictable": Workload(predictable=0.0, unsure=0.1, overconfident=2.0),
}


@dataclass(frozen=True)
class Case:
    """One comparison of all arms."""

    lengths: str
    cost: str
    batch: int
    """Slots: rollouts that run at once."""
    rows: str
    """`uniform` or `packed`."""

    def __str__(self) -> str:
        return f"{self.lengths}, {self.cost}, batch {self.batch}, {self.rows}"


def options() -> argparse.Namespace:
    """The command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    def counts(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m bench.policy", description="Compare the policy's arms.")
    parser.add_argument("--batches", type=counts, default=list(BATCHES), metavar="N,...", help="default 1,8,32,128,256")
    parser.add_argument("--arms", type=names, default=list(ARMS), metavar="ARM,...")
    parser.add_argument("--rows", type=names, default=["uniform", "packed"], metavar="uniform,packed")
    parser.add_argument("--costs", type=names, default=["paper"], metavar=",".join(COSTS))
    parser.add_argument("--recordings", type=Path, nargs="+", default=[], metavar="FILE", help="rollouts (.jsonl)")
    parser.add_argument("--lengths", type=names, default=[*WORKLOADS, "recorded"], metavar="KIND,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings and results")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures (needs matplotlib; .svg or .png)")
    chosen = parser.parse_args()
    if not chosen.recordings:
        chosen.lengths = [kind for kind in chosen.lengths if kind != "recorded"]
    return chosen


@cache
def _recorded(files: tuple[Path, ...], slots: int) -> list[Epoch]:
    return recorded(files, slots)


def epochs_of(case: Case, recordings: list[Path], seed: int) -> list[Epoch]:
    """The epochs of a case: the first is cold."""
    if case.lengths == "recorded":
        return [epoch.first(QUEUE * case.batch) for epoch in _recorded(tuple(recordings), case.batch)]
    workload = WORKLOADS[case.lengths].sized(case.batch)
    return workload.epochs(EPOCHS, seed)


def run(case: Case, arms: list[str], epochs: list[Epoch], seed: int) -> Iterator[dict[str, Any]]:
    """Makespans of a case: a row per arm, for the cold epoch and for the warm ones together."""
    cost, packed = COSTS[case.cost], case.rows == "packed"

    def makespans(arm: Any) -> list[float]:
        return [outcome.makespan for outcome in simulate(arm, epochs, case.batch, cost, seed=seed)]

    plain = makespans(PolicyArm("off", packed))
    clairvoyant = [min(times) for times in zip(*map(makespans, oracles(cost, case.batch, packed)), plain, strict=True)]
    for arm in arms:
        found = makespans(PolicyArm(arm, packed))
        for name, part in (("cold", slice(0, 1)), ("warm", slice(1, None))):
            spent = {"makespan_s": found, "plain_s": plain, "oracle_s": clairvoyant}
            yield {"arm": arm, **asdict(case), "epochs": name} | {key: sum(t[part]) for key, t in spent.items()}


def main() -> int:
    """Runs the command."""
    chosen = options()
    cases = [
        Case(lengths, cost, batch, rows)
        for lengths in chosen.lengths
        for cost in chosen.costs
        for batch in chosen.batches
        for rows in chosen.rows
    ]
    solver_us = report.time_solver()
    results: list[dict[str, Any]] = []
    for number, case in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {case}", file=sys.stderr, flush=True)
        results += run(case, chosen.arms, epochs_of(case, chosen.recordings, chosen.seed), chosen.seed)
        if chosen.json:
            report.write(chosen.json, results, {"epochs": EPOCHS, "seed": chosen.seed, "queue": QUEUE}, solver_us)
    report.show(results)
    print(f"\nthe optimal budgets of 512 rollouts are found in {solver_us:.0f} us")
    if chosen.plot:
        report.plot(chosen.plot, chosen.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
