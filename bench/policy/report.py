"""The results: a table for people, a JSON file, and figures after those of arXiv 2511.13841."""

from __future__ import annotations

import json
import timeit
from pathlib import Path
from typing import Any

import numpy as np
from sglang_das import machine
from sglang_das.policy.budget import solve

from .oracle import oracles
from .simulation import COSTS, Arm, EpochOutcome, PolicyArm, simulate
from .workloads import Epoch, Workload

Row = dict[str, Any]

_PLOTTED_BATCH = 128
_PLOTTED_EPOCHS = 8


def show(results: list[Row]) -> None:
    """Print makespans relative to plain decoding: a line per case, a column per arm, cold / warm epochs."""
    arms = list(dict.fromkeys(row["arm"] for row in results))
    case_of = {row_id(row): [r for r in results if row_id(r) == row_id(row)] for row in results}
    print("\nmakespan / plain decoding's: cold, warm epochs")
    print(f"{'':<44}" + "".join(f"{arm:>16}" for arm in ["oracle", *arms]))
    for case, rows in case_of.items():
        cells = [_cell(rows, "oracle_s", rows[0]["arm"]), *(_cell(rows, "makespan_s", arm) for arm in arms)]
        print(f"{', '.join(map(str, case)):<44}" + "".join(f"{cell:>16}" for cell in cells))


def row_id(row: Row) -> tuple[Any, ...]:
    """What makes a row's case."""
    return row["lengths"], row["cost"], row["batch"], row["rows"]


def _cell(rows: list[Row], key: str, arm: str) -> str:
    ratios = {row["epochs"]: row[key] / row["plain_s"] for row in rows if row["arm"] == arm}
    return f"{ratios['cold']:.3f}, {ratios['warm']:.3f}"


def time_solver() -> float:
    """Microseconds to solve for the optimal budgets of 512 rollouts: the quickest of twenty measurements."""
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(7, 0.8, 512))
    alpha, k = random.uniform(0.3, 1.5, 512), random.uniform(0.4, 0.9, 512)
    calls = 20
    times = timeit.repeat(lambda: solve(lengths, alpha, k, 0.0076, 0.0000285), number=calls, repeat=20)
    return min(times) / calls * 1e6


def write(file: Path, results: list[Row], settings: Row, solver_us: float) -> None:
    """Write machine, settings and results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine.describe(), "settings": settings, "solver_us": solver_us, "results": results}
    file.write_text(json.dumps(content, indent=1) + "\n")


def plot(file: Path, seed: int) -> None:
    """Draw what the paper's figures 1, 9, 10 and 12 show, from a synthetic run of eight epochs, batch 128.

    Raises RuntimeError if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    epochs = Workload().sized(_PLOTTED_BATCH).epochs(_PLOTTED_EPOCHS, seed)
    cost = COSTS["paper"]
    arms: dict[str, Arm] = {name: PolicyArm(name) for name in ("off", "unlimited", "das")}
    arms |= {"oracle": oracles(cost, _PLOTTED_BATCH, packed=False)[1], "das, packed": PolicyArm("das", packed=True)}
    runs = {name: simulate(arm, epochs, _PLOTTED_BATCH, cost, seed=seed) for name, arm in arms.items()}
    figure, ((tail, lengths), (rollout, budget)) = pyplot.subplots(2, 2, figsize=(11, 7))
    _draw_tail(tail, runs)
    _draw_lengths(lengths, epochs)
    _draw_epochs(rollout, runs, ("off", "das", "das, packed", "oracle"), "after figure 10: rollout time")
    _draw_epochs(budget, runs, ("off", "unlimited", "das"), "after figure 12: unlimited budget")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _draw_tail(panel: Any, runs: dict[str, list[EpochOutcome]]) -> None:
    for name in ("off", "das", "oracle"):
        seconds, live = zip(*runs[name][-1].live, strict=True)
        panel.step((0.0, *seconds), (_PLOTTED_BATCH, *live), where="post", label=name)
    panel.set(title="after figure 1: rollouts still running", xlabel="seconds", ylabel="rollouts")
    panel.legend()


def _draw_lengths(panel: Any, epochs: list[Epoch]) -> None:
    problems = epochs[0].problem
    per_problem = [np.concatenate([e.lengths[e.problem == p] for e in epochs]) for p in np.unique(problems)]
    panel.scatter([seen.mean() for seen in per_problem], [seen.max() for seen in per_problem])
    panel.set(title="after figure 9: lengths of a problem", xlabel="mean, tokens", ylabel="longest, tokens")
    panel.set_ylim(bottom=0)


def _draw_epochs(panel: Any, runs: dict[str, list[EpochOutcome]], names: tuple[str, ...], title: str) -> None:
    for name in names:
        panel.plot(range(1, _PLOTTED_EPOCHS + 1), [outcome.makespan for outcome in runs[name]], marker="o", label=name)
    panel.set(title=title, xlabel="epoch (the first is cold)", ylabel="makespan, s")
    panel.set_ylim(bottom=0)
    panel.legend()
