"""All drafters over one trace, added up."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..screen import Screen
from . import ReplayError, jobs
from .figures import Figures, Row
from .jobs import PLAIN, POLICY, Job, Setup
from .peers import PACKAGES
from .play import Played, Tick
from .trace import Trace

NGRAM = "ngram"
"""SGLang's corpus, by whichever of its two match types accepts more at a budget."""
_MATCH_TYPES = ("ngram-bfs", "ngram-prob")
ABOUT = {
    "das": "ours with all it knows",
    "das-blind": "without the sampler's noise",
    "das-hard": "without the target's distributions",
    "das-own": "without the back-off over all problems",
    "das-counts": "without any of the three: counts of the problem's own rollouts",
    "das-chain": "as das, one token after another instead of a tree",
    "arctic": "ArcticInference's suffix decoding",
    NGRAM: "SGLang's n-gram corpus, by its better match type",
    "ngram-bfs": "SGLang's n-gram corpus, by recency",
    "ngram-prob": "SGLang's n-gram corpus, by frequency",
}
"""What can be asked for, and what it is."""
NAMES = tuple(ABOUT)


@dataclass
class Comparison:
    """The figures of all drafters, those in `left_out` excepted, for the reason given there."""

    trace: Trace
    setup: Setup
    epochs: str
    """Which epochs the rows count."""
    results: list[Row]
    cold_results: list[Row]
    """The same for the first epoch; empty if `results` is that, or if it was not played."""
    left_out: dict[str, str] = field(default_factory=dict)


def compare(
    setup: Setup,
    drafters: Sequence[str],
    budgets: Sequence[int | str],
    pythons: Mapping[str, str],
    screen: Screen,
) -> Comparison:
    """Plays the trace against every drafter with every budget.

    Args:
        setup: what is played, and how.
        drafters: some of `NAMES`.
        budgets: nodes per request and step, or `POLICY`, which passes over drafters without probabilities.
        pythons: by package, the Python that has it, where it is not this one.
        screen: where progress is shown.

    A peer that cannot run is left out. Raises ReplayError if the files cannot be read.
    """
    trace = setup.read()
    cold = setup.cold or int(trace.epochs[-1]) == 0
    plain = next(jobs.run([Job(PLAIN, 0)], trace, setup, lambda tokens: None))
    figures, first = Figures(trace, cold, plain), Figures(trace, True, plain)
    result = Comparison(trace, setup, figures.epochs, [figures.row(PLAIN, 0, 0.0, False, plain)], [])
    for label, todo in _groups(drafters, budgets).items():
        try:
            with screen.progress(label, _played_tokens(trace) * len(todo)) as tick:
                played = _play(todo, trace, setup, pythons, tick)
        except ReplayError as error:
            result.left_out[label] = str(error)
            screen.line(f"{label} is left out: {error}")
            continue
        for job, outcome in zip(todo, played, strict=True):
            floor = 0.0 if job.budget == POLICY else setup.floor
            made = (job.drafter, job.budget, floor, jobs.promises(job.drafter), outcome)
            result.results.append(figures.row(*made))
            if not cold and not trace.learned_epochs:
                result.cold_results.append(first.row(*made))
    result.results += _best_of(result.results)
    result.cold_results += _best_of(result.cold_results)
    return result


def _groups(drafters: Sequence[str], budgets: Sequence[int | str]) -> dict[str, list[Job]]:
    """What is played, by what it is announced as; one process each for the peers."""
    groups = {}
    for label in dict.fromkeys(drafters):
        names = _MATCH_TYPES if label == NGRAM else (label,)
        pairs = ((name, budget) for name in names for budget in budgets)
        groups[label] = [Job(*pair) for pair in pairs if pair[1] != POLICY or jobs.promises(pair[0])]
    return {label: todo for label, todo in groups.items() if todo}


def _play(todo: list[Job], trace: Trace, setup: Setup, pythons: Mapping[str, str], tick: Tick) -> list[Played]:
    """Plays the jobs of one drafter. Raises ReplayError if it is a peer that cannot run."""
    package = PACKAGES.get(todo[0].drafter)
    if package is None:
        return list(jobs.run(todo, trace, setup, tick))
    python = pythons.get(package, sys.executable)
    if reason := jobs.missing(package, python):
        raise ReplayError(reason)
    return jobs.run_apart(todo, setup, python, tick)


def _played_tokens(trace: Trace) -> int:
    return int(trace.lengths[trace.epochs >= trace.learned_epochs].sum())


def _best_of(rows: list[Row]) -> list[Row]:
    """Rows for the n-gram corpus by its better match type, where both were played."""
    best = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        both = [row for row in rows if row["drafter"] in _MATCH_TYPES and row["budget"] == budget]
        if len(both) == len(_MATCH_TYPES):
            winner = max(both, key=lambda row: float(row["tokens_per_step"]))
            best.append({**winner, "drafter": NGRAM, "match_type": winner["drafter"].removeprefix("ngram-").upper()})
    return best
