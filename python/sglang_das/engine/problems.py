"""Which problem a request belongs to.

No RL framework sends a problem id, so a problem is its prompt. Frameworks resubmit an aborted rollout as prompt +
partial output; such a request continues its problem: its input starts with a known prompt, and the rest of it continues
a rollout of that problem. Anything else is a problem of its own. A client may also name the problem:
`sampling_params.custom_params = {"das": {"problem": "..."}}`.

Nothing here depends on request ids, clocks or hash seeds, so tensor-parallel ranks agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
S = TypeVar("S")  # the history's sequence type

# Multiplier of the rolling prefix hash; hits are confirmed by comparing the tokens, so it only has to spread well.
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(eq=False)
class Suspended(Generic[S]):
    """A rollout that ended before its natural stop (aborted, or out of budget) and may be resubmitted."""

    output: Tokens
    """What it had emitted."""
    sequence: S
    """Its open sequence in the history, to be continued."""
    version: int
    """Policy version at the time; it is given up some versions later."""


@dataclass(eq=False)
class Problem(Generic[S]):
    """A prompt and the rollouts of it that may be continued."""

    key: int
    """Number of the problem in the history; counts up, from another place in every server that goes on from a file."""
    prompt: Tokens
    suspended: list[Suspended[S]] = field(default_factory=list)


@dataclass(frozen=True)
class Admission(Generic[S]):
    """Where a request belongs."""

    problem: Problem[S]
    continued: Tokens
    """Tokens of the input that are output of an earlier, interrupted request; empty for a new rollout."""
    resumes: Suspended[S] | None
    """The suspended rollout whose sequence goes on, where the client resubmitted all of it."""


@dataclass(frozen=True)
class Known:
    """The known prompts as plain values, for a file."""

    keys: list[int]
    """Numbers of the problems, oldest first."""
    prompts: list[Tokens]
    """Their prompts."""
    names: dict[str, int]
    """Numbers of the problems that clients have named."""
    session: int
    """How many servers have handed the history on."""


# Problems that a server may number before its successor's begin.
_SESSION = 1 << 32


class Problems(Generic[S]):
    """Registry of the known prompts. Generic over the history's sequence type."""

    def __init__(self) -> None:
        """Start with no prompt known."""
        self._by_hash: dict[tuple[int, int], list[Problem[S]]] = {}
        self._by_name: dict[str, Problem[S]] = {}
        self._prompts_of_length: dict[int, int] = {}
        self._next_key = 0
        self._session = 0

    @classmethod
    def of(cls, known: Known, is_held: Callable[[int], bool]) -> Problems[S]:
        """Those an earlier server knew, as far as the history holds them; new ones get numbers it has not given."""
        problems = cls()
        problems._session = known.session + 1
        for key, prompt in zip(known.keys, known.prompts, strict=True):
            if is_held(key):
                problems._add(Problem(key, prompt))
        by_key = {problem.key: problem for problem in problems._all()}
        problems._by_name = {name: by_key[key] for name, key in known.names.items() if key in by_key}
        problems._next_key = problems._session * _SESSION
        return problems

    def known(self) -> Known:
        """All there is to keep of them; rollouts that might be continued are not."""
        problems = sorted(self._all(), key=lambda problem: problem.key)
        names = {name: problem.key for name, problem in self._by_name.items()}
        return Known([p.key for p in problems], [p.prompt for p in problems], names, self._session)

    def __len__(self) -> int:
        """Number of known prompts."""
        return sum(self._prompts_of_length.values())

    def admit(self, input_ids: Tokens, name: str | None = None) -> Admission[S]:
        """Find or create the problem of a request.

        Args:
            input_ids: the whole input, `[length]`.
            name: the problem's name, where the client gave one.
        """
        if name is not None:
            known = self._by_name.get(name)
            if known is None:
                known = self._by_name[name] = self._create(input_ids)
            return _continuation(known, input_ids) or Admission(known, input_ids[:0], None)
        for problem in self._longest_prefixes(input_ids):
            admission = _continuation(problem, input_ids)
            if admission is not None:
                return admission
        return Admission(self._create(input_ids), input_ids[:0], None)

    def expire(self, version: int) -> list[S]:
        """Give up the rollouts suspended before `version`; returns their sequences, to be closed."""
        given_up: list[S] = []
        for problem in self._all():
            given_up += [rollout.sequence for rollout in problem.suspended if rollout.version < version]
            problem.suspended = [rollout for rollout in problem.suspended if rollout.version >= version]
        return given_up

    def give_up(self, count: int) -> list[S]:
        """Give up so many suspended rollouts, the oldest first; returns their sequences, to be closed."""
        suspended = [(problem, rollout) for problem in self._all() for rollout in problem.suspended]
        oldest = sorted(suspended, key=lambda pair: (pair[1].version, pair[0].key))[:count]
        for problem, rollout in oldest:
            problem.suspended.remove(rollout)
        return [rollout.sequence for _, rollout in oldest]

    def forget(self, keys: Iterable[int]) -> None:
        """Drop problems that the history no longer holds."""
        gone = set(keys)
        for (length, digest), problems in list(self._by_hash.items()):
            kept = [problem for problem in problems if problem.key not in gone]
            self._prompts_of_length[length] -= len(problems) - len(kept)
            if not self._prompts_of_length[length]:
                del self._prompts_of_length[length]
            if kept:
                self._by_hash[length, digest] = kept
            else:
                del self._by_hash[length, digest]
        self._by_name = {name: problem for name, problem in self._by_name.items() if problem.key not in gone}

    def known_keys(self) -> list[int]:
        """Keys of the known problems, oldest first."""
        return sorted(problem.key for problem in self._all())

    def _all(self) -> Iterable[Problem[S]]:
        for problems in self._by_hash.values():
            yield from problems

    def _create(self, prompt: Tokens) -> Problem[S]:
        problem: Problem[S] = Problem(self._next_key, prompt.copy())
        self._next_key += 1
        self._add(problem)
        return problem

    def _add(self, problem: Problem[S]) -> None:
        length = len(problem.prompt)
        digest = int(_prefix_hashes(problem.prompt)[-1])
        self._by_hash.setdefault((length, digest), []).append(problem)
        self._prompts_of_length[length] = self._prompts_of_length.get(length, 0) + 1

    def _longest_prefixes(self, input_ids: Tokens) -> Iterable[Problem[S]]:
        """Problems whose prompt the input starts with, the longest prompt first."""
        lengths = sorted((length for length in self._prompts_of_length if length <= len(input_ids)), reverse=True)
        if not lengths:
            return
        hashes = _prefix_hashes(input_ids)
        for length in lengths:
            for problem in self._by_hash.get((length, int(hashes[length - 1])), ()):
                if np.array_equal(problem.prompt, input_ids[:length]):
                    yield problem


def _continuation(problem: Problem[S], input_ids: Tokens) -> Admission[S] | None:
    """The input as prompt + output of an interrupted rollout of `problem`, if it is that."""
    length = len(problem.prompt)
    if not np.array_equal(problem.prompt, input_ids[:length]):
        return None
    rest = input_ids[length:]
    if not len(rest):
        return Admission(problem, rest, None)
    # The client may have received less than was generated before the abort, never more.
    matching = [rollout for rollout in problem.suspended if np.array_equal(rollout.output[: len(rest)], rest)]
    if not matching:
        return None
    exact = next((rollout for rollout in matching if len(rollout.output) == len(rest)), None)
    return Admission(problem, rest, exact)


def _prefix_hashes(tokens: Tokens) -> NDArray[np.uint64]:
    """Polynomial hash of every non-empty prefix, `[length]`, modulo 2^64."""
    # sum of (token + 1) * base^i: the same for a prefix whatever follows it.
    powers = np.full(len(tokens), _BASE, np.uint64)
    powers[:1] = 1
    terms = (tokens.astype(np.uint64) + np.uint64(1)) * np.cumprod(powers, dtype=np.uint64)
    return np.cumsum(terms, dtype=np.uint64)
