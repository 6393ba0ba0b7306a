"""The history in a file, from one server to the next: `SGLANG_DAS_SNAPSHOT=FILE`.

Two files: FILE is what `RolloutHistory.save` writes, FILE.prompts says which of its problems has which prompt, and how
long its rollouts were. They are written every so often and when the server ends, by a thread of their own, each beside
the old one and renamed over it. What cannot be read, or belongs to a model with another vocabulary, is moved aside: a
server always starts, and without history if need be. An error here is told in the log and turns nothing off.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sglang_das import RolloutHistory, Sequence
from sglang_das.engine.config import DasConfig
from sglang_das.engine.problems import Known, Problems
from sglang_das.policy.classes import Seen

logger = logging.getLogger("sglang_das")

_MARK = b"DASPRMT1"

Lengths = dict[int, list[Seen]]


@dataclass(frozen=True)
class Past:
    """What an earlier server left."""

    history: RolloutHistory
    problems: Problems[Sequence]
    lengths: Lengths
    """Of the rollouts of each problem: what the policy expects rests on them."""


class SnapshotError(ValueError):
    """A file that is no snapshot for this server: the message says why."""


@dataclass
class Figures:
    """What became of the file, for `/server_info`."""

    path: str
    loaded: bool = False
    refused: str | None = None
    """Why the file found at the start was moved aside."""
    saved: int = 0
    """How often it was written."""
    failures: int = 0


class Snapshots:
    """The file of one scheduler process."""

    def __init__(self, path: Path, interval_s: float, vocabulary: int) -> None:
        """Nothing is read or written yet.

        Args:
            path: FILE.
            interval_s: seconds between the end of one writing and the start of the next.
            vocabulary: of the model; tokens beyond it must never be drafted.
        """
        self.figures = Figures(str(path))
        self._path, self._prompts = path, path.with_name(f"{path.name}.prompts")
        self._interval_s = interval_s
        self._vocabulary = vocabulary
        self._due = time.monotonic() + interval_s
        self._writer: threading.Thread | None = None

    def load(self, config: DasConfig) -> Past | None:
        """What an earlier server left; None if there is nothing to be had."""
        if not self._path.exists() and not self._prompts.exists():
            return None
        try:
            history = RolloutHistory.load(self._path, **config.history_options())
            known, lengths = self._read_prompts()
            problems: Problems[Sequence] = Problems.of(known, lambda key: key in history)
        except Exception as error:
            self._refuse(error)
            return None
        history.advance()  # the weights may be others by now
        self.figures.loaded = True
        logger.info("DAS goes on from the history in %s: %s", self._path, history.stats())
        return Past(history, problems, {key: seen for key, seen in lengths.items() if key in history})

    def save_if_due(self, past: Callable[[], Past]) -> None:
        """Begin to write what there is by now, if it is time to and nothing is being written."""
        if time.monotonic() >= self._due and self._writer is None:
            self._begin(past)

    def finish(self, past: Callable[[], Past], patience_s: float) -> None:
        """Write once more, and wait for that, for so many seconds at most."""
        ends = time.monotonic() + patience_s
        if (under_way := self._writer) is not None:
            under_way.join(patience_s)
        if self._writer is None and (writer := self._begin(past)) is not None:
            writer.join(max(ends - time.monotonic(), 0.0))
        if self._writer is not None:
            logger.warning("DAS could not write its history within %.0f s: %s is older", patience_s, self._path)

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        return vars(replace(self.figures))

    def _begin(self, past: Callable[[], Past]) -> threading.Thread | None:
        """Write what is known now; rollouts of prompts that come meanwhile are lost, and no harm is done."""
        try:
            now = past()
            arguments = (now.history, now.problems.known(), now.lengths)
        except Exception as error:
            self._failed(error)
            return None
        writer = self._writer = threading.Thread(target=self._write, args=arguments, name="das-snapshot", daemon=True)
        writer.start()
        return writer

    def _write(self, history: RolloutHistory, known: Known, lengths: Lengths) -> None:
        try:
            history.save(self._path)
            self._write_prompts(_pack(known, lengths, self._vocabulary))
            self.figures.saved += 1
            self._due = time.monotonic() + self._interval_s
        except Exception as error:
            self._failed(error)
        finally:
            self._writer = None

    def _failed(self, error: Exception) -> None:
        self.figures.failures += 1
        self._due = time.monotonic() + self._interval_s
        logger.warning("DAS could not write its history to %s: %s", self._path, error)

    def _write_prompts(self, content: bytes) -> None:
        fresh = self._prompts.with_name(f"{self._prompts.name}.new")
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._prompts)

    def _read_prompts(self) -> tuple[Known, Lengths]:
        known, lengths, vocabulary = _unpack(self._prompts.read_bytes())
        if vocabulary != self._vocabulary:
            raise SnapshotError(f"its model has {vocabulary} tokens, this one {self._vocabulary}")
        return known, lengths

    def _refuse(self, error: Exception) -> None:
        self.figures.refused = f"{type(error).__name__}: {error}"
        logger.error(
            "DAS starts without history: %s cannot be used (%s) and is moved to %s.refused",
            self._path,
            self.figures.refused,
            self._path,
        )
        for file in (self._path, self._prompts):
            try:
                if file.exists():
                    file.replace(file.with_name(f"{file.name}.refused"))
            except OSError as failure:
                logger.warning("%s could not be moved aside: %s", file, failure)


def _pack(known: Known, lengths: Lengths, vocabulary: int) -> bytes:
    """The prompts as bytes: a mark, the CRC-32 of what follows, a line of JSON, all tokens as int32."""
    about = {"vocabulary": vocabulary, "session": known.session, "names": known.names, "keys": known.keys}
    about |= {"lengths": [len(prompt) for prompt in known.prompts], "rollouts": [*lengths.items()]}
    line = json.dumps(about).encode()
    tokens: bytes = np.concatenate([np.empty(0, np.int64), *known.prompts]).astype("<i4").tobytes()
    content = line + b"\n" + tokens
    return _MARK + zlib.crc32(content).to_bytes(4, "little") + content


def _unpack(data: bytes) -> tuple[Known, Lengths, int]:
    """The prompts, the lengths of their rollouts (none in older files), and the vocabulary of their model."""
    mark, checksum, content = data[: len(_MARK)], data[len(_MARK) : len(_MARK) + 4], data[len(_MARK) + 4 :]
    if mark != _MARK or checksum != zlib.crc32(content).to_bytes(4, "little"):
        raise SnapshotError("its prompts are damaged")
    line, _, tokens = content.partition(b"\n")
    about = json.loads(line)
    ends = np.cumsum([0, *about["lengths"]])
    flat = np.frombuffer(tokens, "<i4").astype(np.int64)
    prompts = [flat[start:end] for start, end in pairwise(ends.tolist())]
    rollouts = {key: [tuple(seen) for seen in rollouts] for key, rollouts in about.get("rollouts", [])}
    return Known(about["keys"], prompts, about["names"], about["session"]), rollouts, about["vocabulary"]
