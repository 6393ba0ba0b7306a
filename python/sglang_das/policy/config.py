"""What the policy can be told, checked once: a bad value is refused by name, value and remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass

ARMS = ("das", "das-classes", "das-budget", "das-printed", "unlimited", "fixed:N", "off", "sweep")


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Settings of a :class:`Policy`. Every default is meant to be left alone.

    Raises:
        ValueError: a field is out of range; the message names it, its value and what it may be.
    """

    arm: str = "das"
    """Which policy decides.

    ``das`` weighs tokens by what they save of the makespan. ``das-classes`` caps drafts by length class,
    ``das-budget`` by the optimal budgets of (7') and (9'), ``das-printed`` by the paper's printed (7) and (9). All four
    take the step of best value per second. ``unlimited`` verifies all that was drafted, ``fixed:N`` up to N drafts of
    every request, ``off`` none. ``sweep`` goes through all widths in turn, to measure what they cost (`das profile`).
    """

    profile: str = ""
    """A file written by `das profile` for this server: its step times are known from the start."""

    packed: bool = False
    """Whether the engine verifies exactly the rows drafted, instead of the same number for every request."""

    max_width: int = 16
    """Most rows one request may take in a verify step: its root and ``max_width - 1`` drafts."""

    widths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    """Widths a step may have, as far as they are below ``max_width``. On GPU each costs one captured graph."""

    short_quantile: float = 0.2
    """Rollouts shorter than this quantile of the recent lengths are Short."""

    long_quantile: float = 0.8
    """Rollouts at or above this quantile of the recent lengths are Long; those between are Medium."""

    medium_drafts: int = 4
    """Most drafts a Medium request may have. A Short one has none, a Long one up to ``max_width - 1``."""

    min_floor: float = 0.02
    """Draft tokens with a path probability below this are never worth proposing."""

    history: int = 64
    """Finished rollouts remembered per problem."""

    pool: int = 1024
    """Finished rollouts remembered over all problems."""

    max_problems: int = 65536
    """Problems remembered; the least recently used leave first."""

    explore_every: int = 128
    """One speculative step in this many tries a neighbour of the best width, to keep its cost known."""

    margin: float = 0.05
    """Least modelled gain over plain decoding for which a step speculates: the best of guesses promises too much."""

    retest_after: int = 64
    """Steps without drafts after the measured gain was negative; doubles at each failure, up to 32 times."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _check(self._arm_is_known(), "arm", self.arm, f"one of {', '.join(ARMS)} with N from 1 to max_width - 1")
        _check(1 <= self.max_width <= 1024, "max_width", self.max_width, "from 1 to 1024")
        increasing = all(a < b for a, b in zip(self.widths, self.widths[1:], strict=False))
        starts_at_one = bool(self.widths) and self.widths[0] == 1
        _check(
            starts_at_one and increasing, "widths", self.widths, "increasing and starting at 1, such as (1, 2, 4, 8)"
        )
        ordered = 0.0 <= self.short_quantile <= self.long_quantile <= 1.0
        quantiles = (self.short_quantile, self.long_quantile)
        _check(ordered, "(short_quantile, long_quantile)", quantiles, "0 <= short_quantile <= long_quantile <= 1")
        _check(self.medium_drafts >= 0, "medium_drafts", self.medium_drafts, "0 or more")
        _check(0.0 <= self.min_floor < 1.0, "min_floor", self.min_floor, "at least 0 and below 1")
        for name in ("history", "pool", "max_problems", "retest_after"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _check(self.explore_every >= 8, "explore_every", self.explore_every, "8 or more")
        _check(0.0 <= self.margin < 1.0, "margin", self.margin, "at least 0 and below 1")

    def _arm_is_known(self) -> bool:
        return (self.arm in ARMS and self.arm != "fixed:N") or 1 <= self.fixed_drafts < self.max_width

    @property
    def fixed_drafts(self) -> int:
        """N of ``fixed:N``, 0 for every other arm."""
        match = re.fullmatch(r"fixed:([0-9]{1,4})", self.arm)
        return int(match.group(1)) if match else 0

    @property
    def step_widths(self) -> tuple[int, ...]:
        """The widths a step can have: ``widths`` up to ``max_width`` and that itself, or 1 and the fixed one."""
        if self.arm == "off":
            return (1,)
        if self.fixed_drafts:
            return (1, self.fixed_drafts + 1)
        return (*(width for width in self.widths if width < self.max_width), self.max_width)


def _check(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"policy: {name} is {value!r}, must be {remedy}")
