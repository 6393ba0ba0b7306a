"""Replay recorded rollouts against drafters: tokens per verify step, calibration, cost and makespan of each.

FILES hold one rollout a line as JSON (prompt and response: token ids; problem, epoch; where known seed, temperature,
top_ids and top_probabilities), plain or compressed (.gz, .bz2, .xz, .zst), or are npz files with prompt, tokens and
offsets, each a problem. Together they are one recording. Its epochs are played in order, and count from the second on.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ..policy import PolicyConfig
from ..screen import Screen
from . import ReplayError, page, report
from .compare import NAMES, compare
from .control import Latency
from .jobs import POLICY, Setup
from .peers import PACKAGES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `das replay`."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILES", help="recorded rollouts")
    add("--drafters", type=names, default="das,ngram,arctic", metavar="NAMES", help=f"of: {', '.join(NAMES)}")
    add("--budgets", type=budgets, default="5,9,16,32,policy", metavar="N,...", help="nodes a request and step; policy")
    add("--floor", type=share, default=0.0, metavar="P", help="least path probability of a node, at fixed budgets")
    add("--cold", action="store_true", help="play the first epoch only, and count it")
    add("--slots", type=at_least(1), default=8, metavar="R", help="requests that run at once; the others queue")
    add(
        "--history", type=span, metavar="A:B", help="rollouts of each problem to learn and not to play; with --held-out"
    )
    add("--held-out", type=span, metavar="A:B", help="rollouts of each problem to play then")
    add("--apart", action="store_true", help="play every held-out rollout alone, against the history only")
    add("--c-base", type=seconds, default=Latency.base, metavar="S", help="seconds of a verify step: for the step,")
    add("--c-req", type=seconds, default=Latency.per_request, metavar="S", help="for each request in it,")
    add("--c-tok", type=seconds, default=Latency.per_row, metavar="S", help="for each row verified")
    add("--packed", action="store_true", help="rows only for what is drafted, and not as many of every request")
    add("--policy", default=PolicyConfig().arm, metavar="ARM", help="arm of the policy, for the budget 'policy'")
    add("--max-width", type=at_least(2), default=16, metavar="W", help="most rows the policy may give a request")
    packages = ", ".join(dict.fromkeys(PACKAGES.values()))
    add("--python", type=interpreter, action="append", default=[], metavar="PACKAGE=PATH",
        help=f"another Python that has a peer's package ({packages}); may be given twice")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="also write the results to this file")
    add("--html", type=Path, metavar="FILE", help="also write a report with plots to this file")


def run(args: argparse.Namespace) -> int:
    """Run the replay the arguments ask for; return the exit status."""
    screen = Screen()
    try:
        setup = _setup(args)
        comparison = compare(setup, args.drafters, args.budgets, dict(args.python), screen)
    except ReplayError as error:
        print(f"das replay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("das replay: interrupted", file=sys.stderr)
        return 130
    screen.table(report.table(comparison))
    settings = {"drafters": args.drafters, "budgets": args.budgets}
    if args.json:
        report.write(args.json, comparison, settings)
        screen.line(f"Written to {args.json}")
    if args.html:
        args.html.write_text(page.render(report.content(comparison, settings)))
        screen.line(f"Written to {args.html}")
    return 0


def _setup(args: argparse.Namespace) -> Setup:
    if (args.history is None) != (args.held_out is None):
        raise ReplayError("--history and --held-out come together or not at all")
    if args.history is not None and args.history[0] < args.held_out[1] and args.held_out[0] < args.history[1]:
        raise ReplayError("--history and --held-out overlap: a drafter would have seen what it is asked to draft")
    if args.apart and args.history is None:
        raise ReplayError("--apart needs --history and --held-out")
    if args.cold and args.history is not None:
        raise ReplayError("--cold is without a history: leave out --history and --held-out")
    for path in filter(None, (args.json, args.html)):
        if not path.parent.is_dir():
            raise ReplayError(f"{path}: there is no folder {path.parent}")
    try:
        PolicyConfig(arm=args.policy, max_width=args.max_width)
    except ValueError as error:
        raise ReplayError(f"--policy {args.policy} --max-width {args.max_width}: {error}") from error
    return Setup(
        files=args.files,
        history=args.history,
        held_out=args.held_out,
        apart=args.apart,
        cold=args.cold,
        slots=args.slots,
        floor=args.floor,
        latency=Latency(args.c_base, args.c_req, args.c_tok, args.packed),
        policy=args.policy,
        policy_nodes=args.max_width - 1,
    )


# --- types of arguments ---


def names(text: str) -> list[str]:
    """Names of drafters, separated by commas."""
    found = text.split(",")
    if unknown := [name for name in found if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"no drafter is called {unknown[0]!r}; they are {', '.join(NAMES)}")
    return found


def budgets(text: str) -> list[int | str]:
    """Numbers of nodes from 1 to 512, or the word for the policy, separated by commas."""
    found: list[int | str] = []
    for part in text.split(","):
        if part != POLICY and not (part.isdecimal() and 1 <= int(part) <= 512):
            raise argparse.ArgumentTypeError(f"expected numbers of nodes from 1 to 512 or {POLICY!r}, got {part!r}")
        found.append(POLICY if part == POLICY else int(part))
    return found


def span(text: str) -> tuple[int, int]:
    """A range of rollouts, A:B."""
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"expected A:B with A below B, such as 0:8, got {text!r}")
    return int(first), int(end)


def interpreter(text: str) -> tuple[str, str]:
    """A package and the Python that has it."""
    package, equals, path = text.partition("=")
    if not equals or package not in PACKAGES.values():
        raise argparse.ArgumentTypeError(f"expected PACKAGE=PATH with a package of a peer, got {text!r}")
    return package, path


def at_least(least: int) -> Callable[[str], int]:
    """A whole number from `least` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
        return int(text)

    return parse


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, 1.0)


def seconds(text: str) -> float:
    """A time."""
    return _number(text, 1e6)


def _number(text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= most:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {most:g}, got {text!r}")
    return value
