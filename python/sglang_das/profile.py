"""`das profile`: what the verify steps of a server cost, over batch sizes and widths.

The server must run with `--speculative-algorithm DAS` and `SGLANG_DAS_ARM=sweep`: its policy then goes through all
widths in turn and keeps the engine's own step times. This command fills the server with batches of each size, one after
the other, and collects them. The file it writes is what the setting `profile` of the policy takes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sglang_das import machine

Row = dict[str, Any]

_TIMEOUT_S = 3600.0
_LEAST_CONTEXT = 16


class ProfileError(RuntimeError):
    """The server cannot be profiled: the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `das profile`."""
    add = parser.add_argument
    add("url", help="the server, such as http://127.0.0.1:30000")
    add("--batches", type=_counts, default=None, metavar="N,...", help="batch sizes; powers of two up to the server's")
    add("--steps", type=int, default=24, metavar="N", help="steps measured of each batch size and width")
    add("--context", type=int, default=256, metavar="N", help="tokens of the prompts")
    add("--json", type=Path, metavar="FILE", help="write machine, settings and results: the profile")
    add("--plot", type=Path, metavar="FILE", help="draw the curves (needs matplotlib; .svg or .png)")


def run(args: argparse.Namespace) -> int:
    """Exit status 2 if the server cannot be profiled."""
    try:
        profile(args.url.rstrip("/"), args.batches, args.steps, args.context, args.json, args.plot)
    except ProfileError as error:
        print(f"das profile: {error}", file=sys.stderr)
        return 2
    return 0


def profile(
    url: str, batches: list[int] | None, steps: int, context: int, file: Path | None, plot: Path | None
) -> None:
    """Measure, print and write.

    Raises:
        ProfileError: the server does not answer, is not set to sweep or measured nothing, `context` is too short, or
            matplotlib is missing.
    """
    if plot:
        _pyplot()
    if context < _LEAST_CONTEXT:
        raise ProfileError(f"--context is {context}, must be {_LEAST_CONTEXT} or more: shorter prompts are no rollouts")
    info = _call(f"{url}/server_info")
    widths = len(_policy(info)["widths"])
    sizes = batches or _powers_of_two(int(info.get("max_running_requests") or 1))
    print(f"{'requests':>8}{'width':>7}{'rows':>7}{'ms':>9}{'samples':>9}")
    rows: list[Row] = []
    for number, size in enumerate(sizes, 1):
        print(f"[{number}/{len(sizes)}] batch {size}", file=sys.stderr, flush=True)
        _fill(url, size, steps * widths, context)
        measured = _policy(_call(f"{url}/server_info"))["measured"]
        # While a batch fills and empties, steps of other sizes run: too few for a median.
        rows = [row for row in measured if row["requests"] in sizes]
        if all(row["requests"] != size for row in rows):
            print(f"batch {size}: no step had so many requests; the server runs fewer at once", file=sys.stderr)
        for row in (row for row in rows if row["requests"] == size):
            print(f"{size:>8}{row['width']:>7.0f}{row['rows']:>7}{1e3 * row['seconds']:>9.2f}{row['samples']:>9}")
    if not rows:
        raise ProfileError("no step was measured; give the server time with more --steps")
    line, error = fit(rows)
    base, per_request, per_row = 1e3 * line
    print(f"t = {base:.3g} + {per_request:.3g} requests + {per_row:.3g} rows, in ms; mean error {100 * error:.1f} %")
    if file:
        settings = {"url": url, "steps": steps, "context": context, "model": info.get("model_path")}
        fitted = dict(zip(("base", "per_request", "per_row"), line.tolist(), strict=True)) | {"relative_error": error}
        content = {"machine": machine.describe(), "settings": settings, "line_s": fitted, "results": rows}
        file.write_text(json.dumps(content, indent=1) + "\n")
    if plot:
        _draw(plot, rows)


def fit(rows: Sequence[Row]) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """(c_base, c_req, c_tok) of least relative squares, none negative, and the mean relative error.

    arXiv 2511.13841 has no c_req and reports an error of about 0.12.
    """
    features = np.array([(1.0, row["requests"], row["rows"]) for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    used = [0, 1, 2]
    while True:
        line = np.zeros(3)
        line[used] = np.linalg.lstsq(features[:, used] / seconds[:, None], np.ones(len(rows)), rcond=None)[0]
        if (line >= 0.0).all():
            return line, float(np.abs(features @ line / seconds - 1.0).mean())
        used.remove(int(line.argmin()))


def _policy(info: Row) -> Row:
    states = [state["das"]["policy"] for state in info.get("internal_states") or [] if "das" in state]
    if not states:
        raise ProfileError("this server runs without DAS; start it with --speculative-algorithm DAS")
    if "measured" not in states[0]:
        raise ProfileError(f"this server's arm is {states[0].get('arm')!r}; start it with SGLANG_DAS_ARM=sweep")
    policy: Row = states[0]
    return policy


def _fill(url: str, size: int, tokens: int, context: int) -> None:
    """Keep `size` requests running for so many steps; they are not drafted for, so that a step is a token."""
    rng = random.Random(size)
    sampling: Row = {"temperature": 1.0, "max_new_tokens": tokens, "ignore_eos": True}
    sampling["custom_params"] = {"das": {"draft": False}}
    bodies = [
        {"input_ids": [rng.randrange(100, 1000) for _ in range(context)], "sampling_params": sampling}
        for _ in range(size)
    ]
    with ThreadPoolExecutor(size) as pool:
        list(pool.map(lambda body: _call(f"{url}/generate", body), bodies))


def _call(url: str, body: Row | None = None) -> Row:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            content: Row = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ProfileError(f"{url}: {error}; is the server running there?") from error
    return content


def _powers_of_two(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"batch sizes must be 1 or more, got {text!r}")
    return counts


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ProfileError("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _draw(file: Path, rows: Sequence[Row]) -> None:
    """Step time over rows, a line per batch size."""
    figure, panel = _pyplot().subplots(figsize=(6, 4))
    for requests in sorted({row["requests"] for row in rows}):
        points = sorted((row["rows"], 1e3 * row["seconds"]) for row in rows if row["requests"] == requests)
        panel.plot(*zip(*points, strict=True), marker="o", label=f"{requests:g} requests")
    panel.set(xlabel="rows of a verify step", ylabel="ms", xscale="log", ylim=(0, None))
    panel.legend()
    figure.tight_layout()
    figure.savefig(file)
