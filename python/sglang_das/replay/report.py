"""The results as a table for the terminal and as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from .. import machine
from .compare import Comparison
from .figures import Row
from .jobs import PLAIN, POLICY

_HIDDEN = ("ngram-bfs", "ngram-prob")
"""Shown by the better of the two."""


def summary(comparison: Comparison) -> dict[str, Any]:
    """What was played, in numbers."""
    trace = comparison.trace
    played = trace.epochs >= trace.learned_epochs
    return {
        "files": comparison.setup.files,
        "problems": len(trace.names),
        "epochs": len(trace.played_epochs),
        "rollouts": int(played.sum()),
        "history_rollouts": int((~played).sum()),
        "tokens": int(trace.lengths[played].sum()),
        "longest": int(trace.lengths[played].max()),
        "seeded": float(trace.seeded[played].mean()),
        "distributions": trace.ids is not None,
        "counted_epochs": comparison.epochs,
    }


def shown(rows: list[Row]) -> list[Row]:
    """The rows worth a line, budget by budget."""
    names = {row["drafter"] for row in rows}
    rows = [row for row in rows if not (row["drafter"] in _HIDDEN and "ngram" in names)]
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    return sorted(rows, key=lambda row: budgets.index(row["budget"]))


def table(comparison: Comparison) -> Table:
    """All drafters, budget by budget."""
    facts = summary(comparison)
    title = (
        f"{facts['rollouts']} rollouts of {facts['problems']} problems, {facts['tokens']:,} tokens, "
        f"epochs counted: {facts['counted_epochs']}"
    )
    result = Table(title=title)
    result.add_column("budget", justify="right")
    result.add_column("drafter")
    for name in ("nodes/step", "tokens/step", "vs best peer", "ECE", "draft us p50", "p99", "makespan s", "of plain"):
        result.add_column(name, justify="right")
    rows = shown(comparison.results)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        result.add_row(
            str(row["budget"]),
            _name(row),
            f"{row['nodes'] / max(row['steps'], 1):.2f}",
            f"{row['tokens_per_step']:.3f}",
            _gain(row, rows),
            "-" if row["ece"] is None else f"{row['ece']:.3f}",
            f"{row['draft_us_p50']:.1f}",
            f"{row['draft_us_p99']:.1f}",
            f"{row['makespan_s']:.1f}",
            f"{row['makespan_ratio']:.3f}",
            end_section=following is None or following["budget"] != row["budget"],
        )
    return result


def best_peer(row: Row, rows: list[Row]) -> Row | None:
    """The peer that accepts most at the same budget, for rows of ours."""
    peers = [
        other for other in rows if other["budget"] == row["budget"] and other["drafter"].startswith(("ngram", "arctic"))
    ]
    ours = row["drafter"].startswith("das")
    return max(peers, key=lambda peer: float(peer["tokens_per_step"])) if ours and peers else None


def _gain(row: Row, rows: list[Row]) -> str:
    peer = None if row["budget"] == POLICY else best_peer(row, rows)
    return "" if peer is None else f"{row['tokens_per_step'] / peer['tokens_per_step'] - 1:+.1%}"


def _name(row: Row) -> str:
    return f"{row['drafter']} ({row['match_type']})" if "match_type" in row else str(row["drafter"])


def content(comparison: Comparison, settings: dict[str, Any]) -> dict[str, Any]:
    """What the JSON file holds."""
    setup = asdict(comparison.setup)
    return {
        "machine": machine.describe(),
        "settings": setup | settings | {"left_out": comparison.left_out},
        "trace": summary(comparison),
        "results": [row for row in comparison.results if row["drafter"] != PLAIN],
        "plain": next(row for row in comparison.results if row["drafter"] == PLAIN),
    }


def write(path: Path, comparison: Comparison, settings: dict[str, Any]) -> None:
    """Writes the JSON file."""
    path.write_text(json.dumps(content(comparison, settings), indent=1) + "\n")
