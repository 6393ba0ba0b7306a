"""How a file is replayed: with a history, and without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sglang_das.replay.jobs import Setup
from sglang_das.replay.read import read


@dataclass(frozen=True)
class Case:
    """A replay, and what its rows are called."""

    setup: Setup
    name: str
    cold: str | None = None
    """What the rows of its first epoch are called, where that is played and does not count."""

    @property
    def file(self) -> str:
        """The file's name."""
        return Path(self.setup.files[0]).name


def cases(path: Path, slots: int) -> Iterator[Case]:
    """A recording is played in epochs, as by a server. The rollouts of an npz file, which has none, are played apart:
    each half with the other as history, and all without any.
    """
    files = [str(path)]
    if path.suffix != ".npz":
        yield Case(Setup(files, slots=slots), "warm", "cold")
        return
    count = int(np.bincount(read([path]).problems).max())
    first, second = (0, count // 2), (count // 2, count)
    yield Case(Setup(files, history=first, held_out=second, apart=True), "first half as history")
    yield Case(Setup(files, history=second, held_out=first, apart=True), "second half as history")
    yield Case(Setup(files, history=(0, 0), held_out=(0, count), apart=True), "cold")
