"""Command line of `python -m bench.tree`: measures every case, each in a process of its own, and shows the results."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from . import data, peers, report

STRUCTURES = ("das", "das-history", "das-counts", "das-known", "arctic", "arctic-cache", "ngram")
TOKENS = (100_000, 1_000_000, 5_000_000)
CASES = {"1": 1, "2": 2, "expiry": 2, "snapshot": 1}
"""What is measured, and by how many threads: appends and drafts by one or two, expiry beside drafts, a file."""
NGRAM_TOKENS = 1_000_000
"""Beyond this the n-gram corpus is not measured: its pool of nodes is full, and what it stores it loses again."""
ARCTIC_TOKENS = 1_000_000
"""Beyond this ArcticInference is measured once, on one thread: it takes a minute and more each time."""
ABLE = {"expiry": ("das-history", "arctic"), "snapshot": ("das-history",)}
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """One process."""

    case: str
    structure: str
    data: str
    tokens: int
    threads: int

    def __str__(self) -> str:
        return f"{report.title(self.case, self.threads)}: {self.structure}, {self.data}, {self.tokens:,} tokens"

    @property
    def skipped(self) -> str | None:
        """Why it is not measured."""
        if self.structure == "ngram" and self.tokens > NGRAM_TOKENS:
            return "its pool of nodes is full"
        is_arctic = self.structure.startswith("arctic")
        if is_arctic and self.tokens > ARCTIC_TOKENS and (self.case, self.threads) != ("drafts", 1):
            return "it is slow: measured on one thread only"
        if self.structure not in ABLE.get(self.case, STRUCTURES):
            return "it cannot do that"
        return None


def options() -> argparse.Namespace:
    """The command line."""

    def names(allowed: tuple[str, ...]) -> Any:
        def parse(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(allowed):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: it must be among {','.join(allowed)}")
            return text.split(",")

        return parse

    def counts(text: str) -> list[int]:
        return [int(float(part)) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        prog="python -m bench.tree", description="Measure the suffix tree beside its peers."
    )
    parser.add_argument("--tokens", type=counts, default=list(TOKENS), metavar="N,...", help="default 1e5,1e6,5e6")
    parser.add_argument("--data", type=names(data.KINDS), default=list(data.KINDS), metavar="KIND,...")
    parser.add_argument("--structures", type=names(STRUCTURES), default=list(STRUCTURES), metavar="NAME,...")
    parser.add_argument("--cases", type=names(tuple(CASES)), default=list(CASES), metavar="1,2,expiry,snapshot")
    parser.add_argument("--traces", metavar="DIR", help="recorded rollouts (.npz); without it there is no trace data")
    parser.add_argument("--json", metavar="FILE", help="write machine, settings and results, after each case")
    parser.add_argument("--resume", action="store_true", help="go on from what the JSON file has")
    parser.add_argument("--note", metavar="TEXT", help="written into the JSON file, for whoever reads it")
    parser.add_argument("--plot", metavar="FILE", help="draw them (needs matplotlib; .svg or .png)")
    chosen = parser.parse_args()
    if chosen.resume and not chosen.json:
        parser.error("--resume needs --json FILE")
    return chosen


def earlier(file: Path) -> dict[Case, dict[str, Any]]:
    """The results that a file has."""
    rows = json.loads(file.read_text())["results"] if file.exists() else []
    return {Case(**{field.name: row[field.name] for field in fields(Case)}): row for row in rows}


def run(case: Case, traces: str | None) -> dict[str, Any]:
    """Measures a case.

    Raises RuntimeError with the end of what it printed if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "case.json", Path(folder) / "result.json"
        question.write_text(json.dumps(asdict(case) | {"traces": traces and str(Path(traces).resolve())}))
        python = peers.interpreter(case.structure)
        path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
        command = [python, "-m", "bench.tree.worker", str(question), str(answer)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
        outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if not answer.exists():
            raise RuntimeError(f"{case}: {(outcome.stderr or outcome.stdout)[-3000:]}")
        figures: dict[str, Any] = json.loads(answer.read_text())
    return asdict(case) | figures


def main() -> int:
    """Runs the command."""
    chosen = options()
    kinds = [kind for kind in chosen.data if kind != "trace" or chosen.traces]
    cases = [
        Case("drafts" if case.isdigit() else case, structure, kind, tokens, CASES[case])
        for case in chosen.cases
        for kind in kinds
        for tokens in chosen.tokens
        for structure in chosen.structures
    ]
    known = earlier(Path(chosen.json)) if chosen.resume else {}
    results, left_out = list(known.values()), []
    start = time.monotonic()
    for number, case in enumerate(cases, 1):
        if case.skipped:
            left_out.append(asdict(case) | {"reason": case.skipped})
            continue
        if case in known:
            continue
        minutes = (time.monotonic() - start) / 60
        print(f"[{number}/{len(cases)}, {minutes:.0f} min] {case}", file=sys.stderr, flush=True)
        try:
            results.append(run(case, chosen.traces))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        if chosen.json:
            report.write(Path(chosen.json), results, left_out, chosen.note)
    report.show(results)
    if chosen.plot:
        report.plot(Path(chosen.plot), results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
