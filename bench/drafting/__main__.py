"""Command line of `python -m bench.drafting`: replays every file with every drafter, and shows the results."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.table import Table
from sglang_das import machine
from sglang_das.replay import ReplayError, run
from sglang_das.replay.compare import NGRAM, Comparison, compare
from sglang_das.replay.drafters import OURS
from sglang_das.replay.peers import PACKAGES
from sglang_das.replay.report import best_peer, shown
from sglang_das.screen import Screen

from ..tree import peers
from .cases import Case, cases
from .cost import REQUESTS

Row = dict[str, Any]

DRAFTERS = (*OURS, NGRAM, "arctic")
BUDGETS = "5,9,16,32"
COST_NODES = 16
"""Nodes of a draft whose cost is timed."""
_BREAKDOWNS = ("reliability", "by_depth", "by_epoch", "by_match_length", "by_position", "by_length_class")
ROOT = Path(__file__).resolve().parents[2]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.drafting", description="Compare drafters on recorded rollouts at equal budgets."
    )
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILES", help="recordings (JSON lines) and traces (.npz), each apart")
    add("--drafters", type=run.names, default=list(DRAFTERS), metavar="NAMES", help=f"default {','.join(DRAFTERS)}")
    add("--budgets", type=run.budgets, default=run.budgets(BUDGETS), metavar="N,...", help=f"default {BUDGETS}")
    add("--slots", type=run.at_least(1), default=8, metavar="R", help="requests that run at once (default 8)")
    add("--json", type=Path, metavar="FILE", help="write machine, settings and results")
    add("--note", metavar="TEXT", help="written into the JSON file, for whoever reads it")
    return parser.parse_args()


def pythons(drafters: list[str]) -> dict[str, str]:
    """The Python of each peer's package, installed where there is none yet."""
    asked = {"arctic": "arctic", NGRAM: NGRAM, "ngram-bfs": NGRAM, "ngram-prob": NGRAM}
    structures = {asked[name] for name in drafters if name in asked}
    packages = {"arctic": PACKAGES["arctic"], NGRAM: PACKAGES["ngram-bfs"]}
    return {packages[structure]: peers.interpreter(structure) for structure in structures}


def rows_of(case: Case, comparison: Comparison) -> list[Row]:
    """The results of a case, a row each, with the file and what the case is called."""
    phases = {case.name: comparison.results, case.cold: comparison.cold_results}
    return [
        {"file": case.file, "case": name} | {key: value for key, value in row.items() if key not in _BREAKDOWNS}
        for name, rows in phases.items()
        for row in rows
        if row["drafter"] != "plain"
    ]


def table(title: str, rows: list[Row]) -> Table:
    """Tokens per step by drafter and budget, ours with the gain over the best peer."""
    result = Table(title=title)
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    result.add_column("drafter")
    for budget in budgets:
        result.add_column(f"{budget} nodes", justify="right")
    result.add_column("ECE", justify="right")
    rows = shown(rows)
    for name in dict.fromkeys(row["drafter"] for row in rows):
        of_name = {row["budget"]: row for row in rows if row["drafter"] == name}
        errors = [row["ece"] for row in of_name.values() if row["ece"] is not None]
        error = f"{max(errors):.3f}" if errors else "-"
        result.add_row(name, *(_cell(of_name[budget], rows) for budget in budgets), error)
    return result


def _cell(row: Row, rows: list[Row]) -> str:
    peer = best_peer(row, rows)
    gain = f" {row['tokens_per_step'] / peer['tokens_per_step'] - 1:+7.1%}" if peer else " " * 8
    return f"{row['tokens_per_step']:.3f}{gain}"


def step_costs(path: Path, drafters: list[str]) -> list[Row]:
    """What a step of 64 requests costs on one core, by drafter of ours.

    Raises ReplayError with the end of what it printed if the measurement fails.
    """
    names = [name for name in drafters if name in OURS]
    if path.suffix == ".npz" or not names:
        return []
    command = [sys.executable, "-m", "bench.drafting.cost", str(path.resolve()), str(COST_NODES), ",".join(names)]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise ReplayError(outcome.stderr[-2000:])
    costs = json.loads(outcome.stdout)
    return [{"file": path.name, "drafter": name, "nodes": COST_NODES, "step64_ms": ms} for name, ms in costs.items()]


def cost_table(costs: list[Row]) -> Table:
    """Milliseconds of a step, by drafter and file."""
    files = list(dict.fromkeys(row["file"] for row in costs))
    result = Table(title=f"A step of {REQUESTS} requests with {COST_NODES} nodes each, one core: milliseconds")
    result.add_column("drafter")
    for file in files:
        result.add_column(file, justify="right")
    for name in dict.fromkeys(row["drafter"] for row in costs):
        of_name = {row["file"]: f"{row['step64_ms']:.2f}" for row in costs if row["drafter"] == name}
        result.add_row(name, *(of_name.get(file, "-") for file in files))
    return result


def write(chosen: argparse.Namespace, results: list[Row], costs: list[Row], left_out: dict[str, str]) -> None:
    """Write machine, settings and results."""
    settings = {
        "files": [path.name for path in chosen.files],
        "drafters": chosen.drafters,
        "budgets": chosen.budgets,
        "slots": chosen.slots,
        "peers": peers.versions(),
        "left_out": left_out,
        "note": chosen.note,
    }
    content = {"machine": machine.describe(), "settings": settings, "results": results, "step_costs": costs}
    chosen.json.write_text(json.dumps(content, indent=1) + "\n")


def main() -> int:
    """Runs the command."""
    chosen = options()
    screen = Screen()
    results: list[Row] = []
    costs: list[Row] = []
    left_out: dict[str, str] = {}
    try:
        found = pythons(chosen.drafters)
        for path in chosen.files:
            for case in cases(path, chosen.slots):
                screen.line(f"{case.file}, {case.name}")
                comparison = compare(case.setup, chosen.drafters, chosen.budgets, found, screen)
                left_out |= comparison.left_out
                rows = rows_of(case, comparison)
                for name in dict.fromkeys(row["case"] for row in rows):
                    screen.table(table(f"{case.file}, {name}", [row for row in rows if row["case"] == name]))
                results += rows
            costs += step_costs(path, chosen.drafters)
            if chosen.json:
                write(chosen, results, costs, left_out)
    except (ReplayError, RuntimeError) as error:
        print(f"bench.drafting: {error}", file=sys.stderr)
        return 2
    if costs:
        screen.table(cost_table(costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
