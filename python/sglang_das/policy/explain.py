"""Why a request may draft what it may, in a sentence: for logs and for whoever asks the server."""

from __future__ import annotations

from dataclasses import dataclass

from .classes import CLASS_NAMES


@dataclass(frozen=True, slots=True)
class Reasons:
    """What was decided about one request in one step, and from what."""

    arm: str
    length_class: int
    expected: float
    """Tokens it is expected to generate yet."""
    left: int
    """Tokens it may generate yet."""
    max_drafts: int
    drafts: int
    """Nodes it verified."""
    weight: float | None
    """What a token of it is worth, in tokens of the average request; None where all are worth the same."""
    floor: float
    rest: int
    """Steps for which speculation rests yet at this batch size; 0 where it does not."""
    tokens: float
    """Tokens the step was expected to bring over all requests, in"""
    seconds: float
    plain_tokens: int
    """and plain decoding, in"""
    plain_seconds: float


def sentence(why: Reasons) -> str:
    """The reasons in words."""
    return f"{budget(why)}; {_step(why)}"


def budget(why: Reasons) -> str:
    """Why the request might draft as much as it might."""
    name = CLASS_NAMES[why.length_class].capitalize()
    lasts = f"{name}, about {why.expected:.0f} of at most {why.left} tokens to go"
    if why.arm == "off":
        return "no drafts: the arm is off"
    if why.rest:
        return f"no drafts: they lost against plain decoding in batches of this size, tried again in {why.rest} steps"
    if why.left <= 1:
        return "no drafts: its next token is its last"
    if why.arm == "unlimited" or why.arm.startswith("fixed"):
        return f"up to {why.max_drafts} drafts: the arm is {why.arm}"
    if why.max_drafts == 0:
        return f"no drafts: {lasts}, and {_rule(why.arm)}"
    worth = "" if why.weight is None else f", each worth {why.weight:.2g} of an average one to the makespan"
    return f"up to {why.max_drafts} drafts of probability {why.floor:.2g} or more: {lasts}{worth}"


def _rule(arm: str) -> str:
    return "Short ones do not draft" if arm == "das-classes" else "it is not expected to bind the makespan"


def _step(why: Reasons) -> str:
    rate = why.tokens / why.seconds / (why.plain_tokens / why.plain_seconds) - 1.0
    if why.tokens <= why.plain_tokens:
        return "the step verified no drafts, none being expected to pay" if why.max_drafts else "the step was plain"
    took, plain_took = 1e3 * why.seconds, 1e3 * why.plain_seconds
    return (
        f"the step verified {why.drafts} of its drafts, {why.tokens:.1f} tokens expected in {took:.3g} ms, "
        f"{100 * rate:+.0f} % over plain decoding's {why.plain_tokens} in {plain_took:.3g} ms"
    )
