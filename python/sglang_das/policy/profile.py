"""Step times measured beforehand: the file that `das profile` writes, so that a server knows its costs at once."""

from __future__ import annotations

import json
from pathlib import Path


def measured_steps(file: str) -> list[tuple[int, int, float]]:
    """(requests, rows, seconds) of each step measured.

    Raises:
        ValueError: the file cannot be read or is no profile; the message names it.
    """
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))["results"]
        steps = [(int(row["requests"]), int(row["rows"]), float(row["seconds"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"policy: profile is {file!r}, must be a file written by `das profile` ({error})") from error
    if not all(1 <= requests <= rows and 0.0 < seconds < 1e6 for requests, rows, seconds in steps):
        raise ValueError(
            f"policy: profile is {file!r}, must have 1 <= requests <= rows and positive seconds; measure anew"
        )
    return steps
