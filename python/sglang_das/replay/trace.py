"""Recorded rollouts in flat arrays, which a whole batch of requests can be looked up in at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_KNOWN = 8
"""Most entries of a recorded distribution: what the drafter stores beside a token."""


@dataclass(frozen=True)
class Trace:
    """R rollouts of T tokens altogether, ordered by epoch and within it as recorded."""

    prompts: list[NDArray[np.int32]]
    """Prompt of each rollout, one array for all rollouts that share it."""
    tokens: NDArray[np.int32]
    """All responses, one after another, `[T]`."""
    offsets: NDArray[np.int64]
    """Response i is `tokens[offsets[i]:offsets[i + 1]]`; `[R + 1]`."""
    problems: NDArray[np.int64]
    """Which prompt a rollout answers, numbered from 0 as they first occur, `[R]`."""
    epochs: NDArray[np.int64]
    """Numbered from 0, rising, `[R]`."""
    seeds: NDArray[np.int64]
    """Seed of the sampler, `[R]`; 0 where `seeded` is false."""
    seeded: NDArray[np.bool_]
    """Whether the seed is known, `[R]`."""
    greedy: NDArray[np.bool_]
    """Whether the target took its most probable token, `[R]`."""
    ids: NDArray[np.int32] | None
    """Most probable tokens where each token was drawn, `[T, k]`, -1 in unused cells; None if no rollout has any."""
    probabilities: NDArray[np.float32] | None
    """Their probabilities, `[T, k]`."""
    names: list[str]
    """Names of the problems."""
    learned_epochs: int = 0
    """The first epochs are history: learned, not played."""

    def __len__(self) -> int:
        """Number of rollouts."""
        return len(self.problems)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each response, `[R]`."""
        return np.diff(self.offsets)

    @cached_property
    def prompt_lengths(self) -> NDArray[np.int64]:
        """Tokens of each prompt, `[R]`."""
        return np.array([len(prompt) for prompt in self.prompts], np.int64)

    @property
    def played_epochs(self) -> range:
        """The epochs that are played."""
        return range(self.learned_epochs, int(self.epochs[-1]) + 1)

    @property
    def warm_from(self) -> int:
        """First epoch in which a drafter has a history: the second of all."""
        return 1

    def of_epoch(self, epoch: int) -> list[int]:
        """The rollouts of an epoch, as recorded."""
        first, end = np.searchsorted(self.epochs, [epoch, epoch + 1])
        return list(range(int(first), int(end)))

    def places(self, rollouts: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[Any]:
        """Where in the flat arrays tokens `begin[i]` to `end[i]` of `rollouts[i]` are, one after another."""
        counts = end - begin
        starts = self.offsets[rollouts] + begin
        shift = starts - np.concatenate(([0], np.cumsum(counts)[:-1]))
        places: NDArray[np.int64] = np.repeat(shift, counts) + np.arange(int(counts.sum()))
        return places

    def known(self, places: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What the target knew at these places of the flat arrays, as arguments of `append` and `step`."""
        if self.ids is None or self.probabilities is None:
            return {}
        return {"ids": self.ids[places], "probabilities": self.probabilities[places]}

    def future(self, rollouts: NDArray[np.int64], begin: NDArray[np.int64], count: int) -> NDArray[np.int32]:
        """The next `count` tokens of each rollout from `begin[i]` on, `[n, count]`; -1 beyond its end."""
        ahead = begin[:, None] + np.arange(count)
        places = self.offsets[rollouts][:, None] + ahead
        tokens = self.tokens[np.minimum(places, len(self.tokens) - 1)]
        return np.where(ahead < self.lengths[rollouts][:, None], tokens, np.int32(-1))

    def text(self, rollout: int) -> NDArray[np.int32]:
        """Prompt and response of a rollout."""
        return np.concatenate([self.prompts[rollout], self.response(rollout)])

    def response(self, rollout: int) -> NDArray[np.int32]:
        """Response of a rollout."""
        return self.tokens[self.offsets[rollout] : self.offsets[rollout + 1]]

    def select(self, rollouts: list[int], epochs: list[int], learned_epochs: int) -> Trace:
        """The trace of these rollouts only, with new epochs, which must rise from 0."""
        which = np.array(rollouts, np.int64)
        places = self.places(which, np.zeros(len(which), np.int64), self.lengths[which])
        return replace(
            self,
            prompts=[self.prompts[i] for i in rollouts],
            tokens=self.tokens[places],
            offsets=np.concatenate(([0], np.cumsum(self.lengths[which]))),
            problems=self.problems[which],
            epochs=np.array(epochs, np.int64),
            seeds=self.seeds[which],
            seeded=self.seeded[which],
            greedy=self.greedy[which],
            ids=None if self.ids is None else self.ids[places],
            probabilities=None if self.probabilities is None else self.probabilities[places],
            learned_epochs=learned_epochs,
        )

    def split(self, history: slice, held_out: slice) -> Trace:
        """The rollouts of each problem in `history` as epoch 0, to be learned, those in `held_out` as epoch 1."""
        chosen: list[list[int]] = [[], []]
        for problem in range(len(self.names)):
            of_problem = np.flatnonzero(self.problems == problem).tolist()
            for part, rollouts in zip((history, held_out), chosen, strict=True):
                rollouts += of_problem[part]
        learned, played = chosen
        return self.select(learned + played, [0] * len(learned) + [1] * len(played), learned_epochs=1)

    def apart(self) -> list[Trace]:
        """A trace for every rollout to be played: it alone, with the history of them all."""
        learned = np.flatnonzero(self.epochs < self.learned_epochs).tolist()
        epochs = self.epochs[learned].tolist()
        return [
            self.select([*learned, rollout], [*epochs, self.learned_epochs], self.learned_epochs)
            for rollout in range(len(learned), len(self))
        ]
