"""Recording rollouts for replay: JSON lines, one rollout each, compressed if the file's name ends in `.gz`.

A line holds `problem`, `epoch`, `sample`, `prompt` and `response` (token ids), `seed`, `temperature`, and for every
token of the response the likeliest tokens of the distribution it was drawn from: `top_ids` and `top_probabilities`.
That is all sample and match depends on, so a replay of the file is exact.
"""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from . import DemoError
from .client import Request, Rollout
from .tasks import Prompt

DIGITS = 5


def open_recording(path: Path) -> IO[str]:
    """Start a file of recorded rollouts.

    Raises:
        DemoError: it cannot be written.
    """
    try:
        return gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w")
    except OSError as error:
        raise DemoError(f"--record {path}: {error.strerror}") from error


class Recorder:
    """Writes rollouts epoch by epoch, so that what was made before an interrupt is kept."""

    def __init__(self, file: IO[str], prompts: Sequence[Prompt]):
        self._file = file
        self._prompts = prompts

    def write(self, epoch: int, requests: Sequence[Request], rollouts: Sequence[Rollout]) -> None:
        """Add the rollouts that answered the requests of an epoch."""
        for request, rollout in zip(requests, rollouts, strict=True):
            self._file.write(json.dumps(self._line(epoch, request, rollout), separators=(",", ":")) + "\n")
        self._file.flush()

    def _line(self, epoch: int, request: Request, rollout: Rollout) -> dict[str, Any]:
        prompt = self._prompts[request.prompt]
        return {
            "problem": f"{prompt.task}-{request.prompt}",
            "epoch": epoch,
            "sample": request.sample,
            "prompt": request.input_ids,
            "response": rollout.tokens,
            "seed": request.sampling_params["sampling_seed"],
            "temperature": request.sampling_params["temperature"],
            "top_ids": rollout.top_ids,
            "top_probabilities": [[round(p, DIGITS) for p in row] for row in rollout.top_probabilities],
        }
