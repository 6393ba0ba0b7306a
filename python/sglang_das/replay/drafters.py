"""Who drafts, behind one interface: here ours, in `peers` the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import sglang_das
from sglang_das.engine.drafts import Drafts

from .trace import Trace

WINDOW = 16
"""Epochs that our history keeps."""

BLIND, GREEDY, SEEDED = 0, 1, 2
"""What a draft knows of the sampler: see `sglang_das.step`."""


@dataclass(frozen=True)
class Turn:
    """One verify step of n running requests: what each has emitted since its last draft, and what it may draft."""

    rollouts: NDArray[np.int64]
    """Which rollouts of the trace, `[n]`."""
    begin: NDArray[np.int64]
    """Tokens of each that the drafter knows already, `[n]`."""
    end: NDArray[np.int64]
    """Tokens of each that it may know now, `[n]`."""
    max_nodes: NDArray[np.int32]
    """Most nodes to draft for each, `[n]`."""
    floors: NDArray[np.float32]
    """Path probability below which a node is not worth drafting, `[n]`."""


class Drafter(Protocol):
    """Drafts for the rollouts of one trace, which it knows by number."""

    promises: bool
    """Whether its drafts carry probabilities."""

    def learn(self, rollouts: list[int]) -> None:
        """Takes in finished rollouts of one epoch."""

    def advance(self) -> None:
        """The next epoch begins."""

    def open(self, rollout: int) -> None:
        """A request begins; its first token will be in its first turn."""

    def step(self, turn: Turn) -> Drafts:
        """Takes in what was emitted and drafts."""

    def close(self, rollout: int, begin: int) -> None:
        """A request has ended; its tokens from `begin` on are not known yet."""


@dataclass(frozen=True)
class Ideas:
    """What our drafter uses. Each can be switched off, to see what it brings."""

    coupled: bool = True
    """The sampler's noise, where the seed is known."""
    soft: bool = True
    """The target's distributions, where they are recorded."""
    shared: bool = True
    """The back-off over all problems."""
    shape: str = "tree"


OURS = {
    "das": Ideas(),
    "das-blind": Ideas(coupled=False),
    "das-hard": Ideas(soft=False),
    "das-own": Ideas(shared=False),
    "das-counts": Ideas(coupled=False, soft=False, shared=False),
    "das-chain": Ideas(shape="chain"),
}
"""Our drafter by name: with all ideas, without some, and in chains."""


class Nobody:
    """Drafts nothing: plain decoding."""

    promises = False

    def learn(self, rollouts: list[int]) -> None: ...

    def advance(self) -> None: ...

    def open(self, rollout: int) -> None: ...

    def step(self, turn: Turn) -> Drafts:
        return Drafts.none(len(turn.rollouts))

    def close(self, rollout: int, begin: int) -> None: ...


@dataclass
class Das:
    """`RolloutHistory`, called as the engine calls it: once per step."""

    trace: Trace
    ideas: Ideas
    width: int
    """Columns of the drafts."""
    promises: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        ideas: dict[str, Any] = {"soft": self.ideas.soft, "shared": self.ideas.shared}
        self._history = sglang_das.RolloutHistory(window=WINDOW, **ideas)
        self._native: Any = sglang_das.step
        self._open: dict[int, sglang_das.Sequence] = {}
        trace = self.trace
        coupling = np.where(trace.greedy, GREEDY, np.where(trace.seeded, SEEDED, BLIND)).astype(np.uint8)
        self._coupling = coupling if self.ideas.coupled else np.zeros_like(coupling)

    def learn(self, rollouts: list[int]) -> None:
        for rollout in rollouts:
            self.open(rollout)
            self.close(rollout, 0)

    def advance(self) -> None:
        self._history.advance()

    def open(self, rollout: int) -> None:
        trace = self.trace
        self._open[rollout] = self._history.rollout(int(trace.problems[rollout]), trace.prompts[rollout])

    def step(self, turn: Turn) -> Drafts:
        trace = self.trace
        places = trace.places(turn.rollouts, turn.begin, turn.end)
        offsets = np.concatenate(([0], np.cumsum(turn.end - turn.begin)))
        return Drafts(
            *self._native(
                [self._open[rollout] for rollout in turn.rollouts.tolist()],
                trace.tokens[places],
                offsets,
                max_nodes=turn.max_nodes,
                min_probability=turn.floors,
                width=self.width,
                shape=self.ideas.shape,
                coupling=self._coupling[turn.rollouts],
                seeds=trace.seeds[turn.rollouts],
                positions=trace.prompt_lengths[turn.rollouts] + turn.end - 1,
                **self._known(places),
            )
        )

    def close(self, rollout: int, begin: int) -> None:
        sequence = self._open.pop(rollout)
        places = np.arange(self.trace.offsets[rollout] + begin, self.trace.offsets[rollout + 1])
        sequence.append(self.trace.tokens[places], **self._known(places))
        sequence.close()

    def _known(self, places: NDArray[Any]) -> dict[str, Any]:
        return self.trace.known(places) if self.ideas.soft else {}
