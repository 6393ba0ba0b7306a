"""Step times measured beforehand: the file that `das profile` writes, so that a server knows its costs at once."""

from __future__ import annotations

import json
from pathlib import Path


def measured_steps(file: str) -> list[tuple[int, int, float, int]]:
    """(requests, rows, median seconds, samples) of each kind of step measured.

    Raises:
        ValueError: the file cannot be read or is no profile; the message names it.
    """
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))["results"]
        steps = [(int(r["requests"]), int(r["rows"]), float(r["seconds"]), int(r["samples"])) for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"policy: profile is {file!r}, must be a file written by `das profile` ({error})") from error
    if not steps or not all(1 <= b <= rows and 0.0 < s < 1e6 and samples > 0 for b, rows, s, samples in steps):
        raise ValueError(
            f"policy: profile is {file!r}, must have steps, each with 1 <= requests <= rows and with positive seconds "
            "and samples; measure anew"
        )
    return steps
