"""The kinds of server that are compared, by name: what each has beyond what all of them share.

- `plain`: no speculation;
- `das`, with settings changed if wanted: `das:shape=chain+coupled=0` sets `SGLANG_DAS_SHAPE` and `SGLANG_DAS_COUPLED`;
- `ngram`, SGLang's own n-gram corpus driven through the same worker, so that both are verified alike; `ngram:9`
  verifies nine rows a request and step.
"""

import dataclasses
from dataclasses import dataclass, field

from ..engine.config import PREFIX, DasConfig
from . import DemoError

KNOWN = ("plain", "das", "ngram")
NGRAM_WIDTH = 9


@dataclass(frozen=True)
class ArmOptions:
    """What is added to the command and environment of one kind of server."""

    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


def arm_options(name: str) -> ArmOptions:
    """What the arm of this name has.

    Raises:
        DemoError: there is no such arm, or no such setting.
    """
    kind, colon, changes = name.partition(":")
    if name == "plain":
        return ArmOptions()
    if kind == "das":
        settings = changes.split("+") if colon else []
        return ArmOptions(["--speculative-algorithm", "DAS"], dict(_setting(name, text) for text in settings))
    if kind == "ngram":
        width = changes if colon else str(NGRAM_WIDTH)
        if width.isdecimal() and int(width) > 1:
            return ArmOptions(
                ["--speculative-algorithm", "DAS", "--speculative-num-draft-tokens", width],
                {PREFIX + "DRAFTER": "ngram"},
            )
    raise DemoError(
        f"--arms names {name!r}. Known: {', '.join(KNOWN)}; "
        "das:SETTING=VALUE+... changes settings, ngram:WIDTH the width"
    )


def _setting(arm: str, text: str) -> tuple[str, str]:
    """One `name=value` as an environment variable."""
    name, equals, value = text.partition("=")
    settings = [setting.name for setting in dataclasses.fields(DasConfig)]
    if not equals or name not in settings:
        raise DemoError(f"--arms {arm}: {text!r} is not SETTING=VALUE. The settings are {', '.join(settings)}")
    return PREFIX + name.upper(), value
