"""Adding up the rollouts, and showing them: a table, a JSON file."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from .. import machine
from ..screen import Screen
from .client import Rollout

GREEDY = 0  # stands for the greedy comparison where an epoch is named; epochs count from 1


@dataclass(frozen=True)
class EpochRow:
    """One epoch of one arm.

    `tokens_per_step` is tokens emitted per request and verify step, accepted drafts + 1: the first token of a rollout
    comes from its prefill and does not count. `drafted`, `accepted` and `draft_cpu_s` are None where the server does
    not tell. `identical` counts the rollouts that are token for token the plain server's, None without one.
    """

    epoch: int
    arm: str
    makespan_s: float
    tokens: int
    verify_steps: int
    tokens_per_step: float
    drafted: int | None
    accepted: int | None
    draft_cpu_s: float | None
    identical: int | None = None


@dataclass(frozen=True)
class Difference:
    """The first place where a rollout is not the plain server's."""

    arm: str
    epoch: int
    prompt: int
    sample: int
    position: int


def epoch_row(
    epoch: int, arm: str, makespan_s: float, rollouts: Sequence[Rollout], drafting: dict[str, float] | None
) -> EpochRow:
    """Add up one epoch of one arm. `drafting` holds what the drafter's counters gained in it: drafted, accepted,
    draft_cpu_s.
    """
    tokens = sum(len(rollout.tokens) for rollout in rollouts)
    steps = sum(rollout.verify_steps for rollout in rollouts)
    decoded = tokens - sum(1 for rollout in rollouts if rollout.tokens)
    if arm == "plain":
        drafting = {"drafted": 0, "accepted": 0, "draft_cpu_s": 0.0}
    return EpochRow(
        epoch,
        arm,
        makespan_s,
        tokens,
        steps,
        decoded / steps if steps else 1.0,
        int(drafting["drafted"]) if drafting else None,
        int(drafting["accepted"]) if drafting else None,
        float(drafting["draft_cpu_s"]) if drafting else None,
    )


class Comparison:
    """Counts which rollouts are token for token the plain server's."""

    def __init__(self) -> None:
        self.compared = 0
        self.differences: list[Difference] = []

    def add(self, epoch: int, results: Mapping[str, Sequence[Rollout]]) -> dict[str, int]:
        """Compare each arm's rollouts of an epoch with plain's; return how many are identical, by arm.

        All arms' rollouts answer the same requests in the same order.
        """
        counts = {}
        for arm in results:
            if arm != "plain" and "plain" in results:
                found = list(_differences(arm, epoch, results["plain"], results[arm]))
                counts[arm] = len(results[arm]) - len(found)
                self.compared += len(results[arm])
                self.differences += found
        return counts

    @property
    def verdict(self) -> dict[str, Any]:
        """Whether all greedy and all seeded rollouts are identical (None without any), and how many were compared."""
        return {
            "greedy": not any(found.epoch == GREEDY for found in self.differences) if self.compared else None,
            "seeded": not any(found.epoch != GREEDY for found in self.differences) if self.compared else None,
            "compared": self.compared,
        }


def _differences(arm: str, epoch: int, plain: Sequence[Rollout], other: Sequence[Rollout]) -> Iterator[Difference]:
    for expected, got in zip(plain, other, strict=True):
        if expected.tokens != got.tokens:
            pairs = enumerate(zip(expected.tokens, got.tokens, strict=False))
            shorter = min(len(expected.tokens), len(got.tokens))
            position = next((at for at, (left, right) in pairs if left != right), shorter)
            yield Difference(arm, epoch, got.prompt, got.sample, position)


def warm_ratio(rows: Sequence[EpochRow], arm: str, than: str = "plain") -> float | None:
    """Makespans of the epochs after the first, summed, relative to another arm's; None if there are none to compare."""
    ours, theirs = _warm_makespan(rows, arm), _warm_makespan(rows, than)
    return ours / theirs if ours and theirs else None


def best_ngram(rows: Sequence[EpochRow]) -> str | None:
    """The arm of n-gram drafts, one for each width, with the least makespan over the epochs after the first."""
    arms = dict.fromkeys(row.arm for row in rows if row.arm.startswith("ngram") and row.epoch > 1)
    return min(arms, key=lambda arm: _warm_makespan(rows, arm), default=None)


def _warm_makespan(rows: Sequence[EpochRow], arm: str) -> float:
    return sum(row.makespan_s for row in rows if row.arm == arm and row.epoch > 1)


def lengths(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The distribution of output lengths in tokens, and the share that ran into the limit."""
    sizes = sorted(len(rollout.tokens) for rollout in rollouts)
    percentiles = statistics.quantiles(sizes, n=100, method="inclusive") if len(sizes) > 1 else sizes * 99
    return {
        "min": sizes[0],
        "p50": percentiles[49],
        "p90": percentiles[89],
        "max": sizes[-1],
        "mean": statistics.fmean(sizes),
        "capped": sum(rollout.finish == "length" for rollout in rollouts) / len(rollouts),
    }


@dataclass(frozen=True)
class Report:
    """Everything a run found out."""

    settings: dict[str, Any]
    rows: list[EpochRow]
    lengths: dict[str, float]
    comparison: Comparison

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        content = {
            "machine": machine.describe(),
            "settings": self.settings,
            "epochs": [asdict(row) for row in self.rows],
            "identical": self.comparison.verdict,
            "lengths": self.lengths,
            "differences": [asdict(difference) for difference in self.comparison.differences],
            "warm_ratio": {arm: warm_ratio(self.rows, arm) for arm in self.settings["arms"] if arm != "plain"},
            "best_ngram": best_ngram(self.rows),
            "warm_ratio_to_best_ngram": dict(self._beside_ngram()),
        }
        path.write_text(json.dumps(content, indent=2) + "\n")

    def show(self, screen: Screen) -> None:
        """Print the table and what it comes to."""
        screen.table(self._table())
        size = self.lengths
        screen.line(
            f"Output lengths in tokens: {size['min']:.0f} to {size['max']:.0f}, median {size['p50']:.0f}, "
            f"90th percentile {size['p90']:.0f}; {size['capped']:.0%} ran into the limit."
        )
        for arm in self.settings["arms"]:
            if arm != "plain" and (ratio := warm_ratio(self.rows, arm)):
                screen.line(
                    f"Warm epochs (all but the first): makespan with {arm} is {ratio:.3f} of plain, {_change(ratio)}."
                )
        for arm, ratio in self._beside_ngram():
            of = f"{best_ngram(self.rows)}, the best of SGLang's n-gram drafts"
            screen.line(f"Warm epochs: makespan with {arm} is {ratio:.3f} of that with {of}, {_change(ratio)}.")
        compared, found = self.comparison.compared, self.comparison.differences
        if not compared:
            screen.line("Nothing was compared: that takes the arm 'plain' and another.")
        elif not found:
            screen.line(f"Every rollout is token for token the plain server's ({compared} compared, greedy included).")
        else:
            first = found[0]
            kind = "greedy" if first.epoch == GREEDY else f"epoch {first.epoch}"
            screen.line(
                f"ROLLOUTS DIFFER: {len(found)} of {compared}. The first: {first.arm}, {kind}, "
                f"prompt {first.prompt}, sample {first.sample}, from token {first.position} on."
            )

    def _beside_ngram(self) -> Iterator[tuple[str, float]]:
        """Our arms, and their warm makespan relative to the best of the n-gram arms."""
        best = best_ngram(self.rows)
        for arm in self.settings["arms"]:
            if best and arm.startswith("das") and (ratio := warm_ratio(self.rows, arm, best)):
                yield arm, ratio

    def _table(self) -> Table:
        table = Table(title=f"{self.settings['rollouts_per_epoch']} rollouts per epoch, {self.settings['slots']} slots")
        table.add_column("epoch", justify="right")
        table.add_column("arm")
        for name in (
            "makespan s",
            "vs plain",
            "tokens",
            "tokens/step",
            "drafted",
            "accepted",
            "draft CPU s",
            "identical",
        ):
            table.add_column(name, justify="right")
        plain = {row.epoch: row.makespan_s for row in self.rows if row.arm == "plain"}
        for row in self.rows:
            share = f"{row.accepted / row.drafted:.0%}" if row.accepted is not None and row.drafted else ""
            table.add_row(
                str(row.epoch),
                row.arm,
                f"{row.makespan_s:.1f}",
                _cell(row.makespan_s / plain[row.epoch] if row.epoch in plain else None, ".3f"),
                str(row.tokens),
                f"{row.tokens_per_step:.2f}",
                _cell(row.drafted, "d"),
                f"{_cell(row.accepted, 'd')} {share}".strip(),
                _cell(row.draft_cpu_s, ".2f"),
                "" if row.identical is None else f"{row.identical}/{self.settings['rollouts_per_epoch']}",
                end_section=row.arm == self.settings["arms"][-1],
            )
        return table


def _change(ratio: float) -> str:
    return f"{abs(1 - ratio):.1%} {'shorter' if ratio < 1 else 'longer'}"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
