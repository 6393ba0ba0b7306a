"""Rollouts of one server compared with each other: drafted for against not, and plain decoding against itself.

Knows no server; `lossless` runs what is compared here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import takewhile
from typing import Any

LOGPROB_TOLERANCE = 1e-3
"""How far log-probabilities of the same tokens may be apart: plain and speculative decoding round them differently."""

_CONTEXT = 8  # tokens shown before a difference
_TEXT = 60  # and letters


@dataclass(frozen=True)
class Rollout:
    """An answer of `/generate`, as far as it is compared."""

    name: str
    """What was asked for, in words."""
    tokens: list[int]
    logprobs: list[float] | None = None
    """Log-probability of each token, where they were asked for."""
    top: list[list[tuple[int, float]]] | None = None
    """At each token the likeliest ones and their log-probabilities, where they were asked for."""
    finish: str = ""
    """Why it ended."""
    text: str = ""
    """The tokens as text, where the server has a tokenizer."""
    proposed: int = 0
    """Tokens drafted for it."""
    accepted: int = 0
    """Drafts kept."""
    steps: int = 0
    """Verify steps it took."""

    @classmethod
    def of(cls, name: str, answer: dict[str, Any]) -> Rollout:
        """From the JSON of an answer."""
        meta = answer["meta_info"]
        figures = meta.get("das") or {}
        logprobs, top = meta.get("output_token_logprobs"), meta.get("output_top_logprobs")
        return cls(
            name,
            answer["output_ids"],
            [entry[0] for entry in logprobs] if logprobs else None,
            [[(entry[1], entry[0]) for entry in row or []] for row in top] if top else None,
            str(meta.get("finish_reason")),
            answer.get("text") or "",
            figures.get("proposed", 0),
            figures.get("accepted", 0),
            figures.get("verify_steps", 0),
        )


@dataclass(frozen=True)
class Difference:
    """The first place where two answers to one request part."""

    name: str
    place: int
    """Index of the token among the rollout's."""
    context: list[int]
    """Tokens before it."""
    text: str
    """The end of the text both begin with, where there is a tokenizer."""
    plain: int | str
    """The token plain decoding emitted there; where all tokens are the same, why the rollout ended."""
    das: int | str
    """What was emitted instead."""
    near: list[tuple[int, float]]
    """Plain decoding's likeliest tokens there, with log-probabilities, where known."""

    def describe(self) -> str:
        """In a line of words."""
        known = ", ".join(f"{token} at {value:.4f}" for token, value in self.near)
        likeliest = f"; the likeliest there, by log-probability: {known}" if known else ""
        text = f" ...{self.text!r}" if self.text else ""
        return f"{self.name}, token {self.place}: {self.plain} / {self.das} after {self.context}{text}{likeliest}"


@dataclass(frozen=True)
class Comparison:
    """Of a set of rollouts with a reference: what differs, and how far log-probabilities are apart."""

    compared: int
    tokens: int
    """Tokens of the reference that were compared."""
    differences: list[Difference]
    logprobs: int
    """Log-probabilities compared: of tokens up to the first that differs."""
    logprob_gap: float
    """Their largest difference."""

    def __add__(self, other: Comparison) -> Comparison:
        """Both together."""
        return Comparison(
            self.compared + other.compared,
            self.tokens + other.tokens,
            self.differences + other.differences,
            self.logprobs + other.logprobs,
            max(self.logprob_gap, other.logprob_gap),
        )

    @property
    def same(self) -> bool:
        """Whether the tokens are equal, and the log-probabilities to tolerance."""
        return not self.differences and self.logprob_gap <= LOGPROB_TOLERANCE


NOTHING = Comparison(0, 0, [], 0, 0.0)


def compare(reference: Sequence[Rollout], others: Iterable[Rollout]) -> Comparison:
    """Rollouts with those of the same names in the reference."""
    known = {rollout.name: rollout for rollout in reference}
    return sum((_compare(known[other.name], other) for other in others), NOTHING)


def _compare(plain: Rollout, other: Rollout) -> Comparison:
    shared = _shared(plain.tokens, other.tokens)
    differences = [] if _equal(plain, other) else [_difference(plain, other, shared)]
    gaps = [abs(a - b) for a, b in zip(plain.logprobs or [], other.logprobs or [], strict=False)][:shared]
    return Comparison(1, len(plain.tokens), differences, len(gaps), max(gaps, default=0.0))


def _shared(a: Sequence[object], b: Sequence[object]) -> int:
    """How many items both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _equal(plain: Rollout, other: Rollout) -> bool:
    return (plain.tokens, plain.finish) == (other.tokens, other.finish)


def _difference(plain: Rollout, other: Rollout, place: int) -> Difference:
    context = plain.tokens[max(place - _CONTEXT, 0) : place]
    near = plain.top[place] if plain.top and place < len(plain.top) else []
    text = plain.text[: _shared(plain.text, other.text)][-_TEXT:]
    return Difference(plain.name, place, context, text, _at(plain, place), _at(other, place), near)


def _at(rollout: Rollout, place: int) -> int | str:
    return rollout.tokens[place] if place < len(rollout.tokens) else f"end ({rollout.finish})"


class Outcome(IntEnum):
    """What a comparison shows; also the exit status of the command (2 is that of one that could not be made)."""

    IDENTICAL = 0
    DIFFERENT = 1
    UNDECIDED = 3


def judge(plain: Comparison, das: Comparison, accepted: int) -> tuple[Outcome, str]:
    """What is shown, and in words.

    Args:
        plain: plain decoding with itself.
        das: decoding with drafts with plain decoding.
        accepted: how many drafts were kept.
    """
    if not plain.same:
        return Outcome.UNDECIDED, (
            f"plain decoding is not reproducible on this server: {_amount(plain)} differ between plain runs, so that "
            f"no drafting could be shown to be the same token for token. With drafts {_amount(das)} differ"
        )
    if das.differences:
        return Outcome.DIFFERENT, f"plain decoding is reproducible here, but with drafts {_amount(das)} differ"
    if not das.same:
        return Outcome.DIFFERENT, f"the tokens are the same, but log-probabilities are {das.logprob_gap:.2g} apart"
    if not accepted:
        return Outcome.UNDECIDED, (
            "the outputs are the same, but no draft was accepted, so that nothing was shown; try more --max-new-tokens"
        )
    return Outcome.IDENTICAL, "with drafts every rollout is the one plain decoding gives, token for token"


def _amount(comparison: Comparison) -> str:
    return f"{len(comparison.differences)} of {comparison.compared} rollouts"
