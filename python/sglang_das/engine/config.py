"""Settings of the plugin, from the environment or one file.

SGLang has no flag a plugin could use, so the channel is the environment, which every spawned process and every
Ray-based launcher inherits: `SGLANG_DAS_CONFIG` names a JSON or YAML file (or is inline JSON), and `SGLANG_DAS_<FIELD>`
overrides one field.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

PREFIX = "SGLANG_DAS_"
Shape = Literal["auto", "chain", "tree"]
SHAPES: tuple[str, ...] = get_args(Shape)
DRAFTERS = ("das", "ngram")


class ConfigError(ValueError):
    """A setting that cannot be used: the message names it, its value and the remedy."""


@dataclass(frozen=True)
class DasConfig:
    """Settings of one server. The defaults are meant to be enough."""

    drafter: Literal["das", "ngram"] = "das"
    """Who drafts; `ngram` is SGLang's own corpus, for comparisons only."""
    enabled: bool = True
    """Whether to draft at all. Off, the server decodes plainly through the same worker."""
    arm: str = "das"
    """The policy's arm: see `sglang_das.policy`."""
    profile: str = ""
    """A file written by `das profile` for this server: what steps cost is known from the start."""
    shape: Shape = "auto"
    """Form of a draft: `chain`, `tree`, or `auto`, a tree wherever the attention backend can verify one."""
    soft: bool = True
    """Learn the target's likeliest tokens at emitted positions, beside the token drawn."""
    rejected: bool = True
    """Learn them at drafted nodes that were not kept, too."""
    shared: bool = True
    """Fall back on what follows the last one or two tokens in any problem."""
    coupled: bool = True
    """Draft with the noise the sampler will use, where it is known."""
    packed: bool = True
    """Verify what was drafted and nothing else, where the attention backend can: the CPU engine's."""
    max_width: int = 16
    """Largest verify width (rows per request: one root and the drafts).

    `--speculative-num-draft-tokens` overrides it.
    """
    window: int = 16
    """How many visits of a problem its history keeps."""
    history_bytes: int = 4 << 30
    """Budget of the whole history in bytes; problems visited least recently leave first."""
    max_depth: int = 64
    """Longest context the suffix tree distinguishes, in tokens."""
    snapshot: str = ""
    """A file that the history is kept in, from one server to the next; each of several ranks appends its number."""
    snapshot_interval_s: float = 600.0
    """Seconds between two writings of it."""
    min_prompt_tokens: int = 8
    """Shorter prompts (health checks, warm-up) make no problem and are not drafted for."""
    log_interval_s: float = 60.0
    """Seconds between two log lines of the drafting state."""

    def __post_init__(self) -> None:
        """Reject what cannot work, before anything is built on it."""
        if self.shape not in SHAPES:
            raise ConfigError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        if self.drafter not in DRAFTERS:
            raise ConfigError(f"drafter must be one of {', '.join(DRAFTERS)}, got {self.drafter!r}")
        for name, least in (
            ("max_width", 1),
            ("window", 1),
            ("history_bytes", 1 << 20),
            ("max_depth", 2),
            ("min_prompt_tokens", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("log_interval_s", "snapshot_interval_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.snapshot and not Path(self.snapshot).absolute().parent.is_dir():
            raise ConfigError(f"snapshot must be a file in a folder that exists, got {self.snapshot!r}")

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> DasConfig:
        """Read the file named by `SGLANG_DAS_CONFIG`, then the single variables.

        Raises:
            ConfigError: on an unknown name, a value of the wrong type or a file that cannot be read.
        """
        known = {field.name: field for field in fields(cls)}
        values = dict(_read_file(environ.get(PREFIX + "CONFIG", "")))
        for name in known:
            text = environ.get(PREFIX + name.upper())
            if text is not None:
                values[name] = text
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"unknown setting {unknown[0]!r}; the settings are {', '.join(known)}")
        return cls(**{name: _convert(name, value, known[name].default) for name, value in values.items()})

    @property
    def packs_rows(self) -> bool:
        """Whether to pack: not in a sweep of whole widths, nor the n-gram drafts that SGLang verifies padded."""
        return self.packed and self.arm != "sweep" and self.drafter == "das"

    @property
    def keeps_distributions(self) -> bool:
        """Whether anything is learnt of the distributions tokens are drawn from."""
        return (self.soft or self.rejected) and self.drafter == "das"

    def history_options(self) -> dict[str, Any]:
        """What `RolloutHistory` is made with."""
        return {
            "window": self.window,
            "max_bytes": self.history_bytes,
            "max_depth": self.max_depth,
            "soft": self.soft,
            "shared": self.shared,
            "rejected": self.rejected,
        }

    def describe(self) -> dict[str, Any]:
        """The settings as plain values, for logs and server info."""
        return dataclasses.asdict(self)


def _read_file(source: str) -> Mapping[str, Any]:
    if not source.strip():
        return {}
    where = f"{PREFIX}CONFIG"
    text = source
    if not source.lstrip().startswith("{"):
        where = source
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{PREFIX}CONFIG={source}: cannot be read ({error}); give a JSON or YAML file") from error
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else _parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON or YAML ({error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of settings, got {type(data).__name__}")
    return data


def _parse_yaml(text: str) -> Any:
    import yaml  # comes with SGLang

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _convert(name: str, value: Any, default: Any) -> Any:
    """`value` as the type of the field's default; text from the environment is parsed."""
    kind = type(default)
    if kind is bool:
        truth = {
            "1": True,
            "true": True,
            "on": True,
            "yes": True,
            "0": False,
            "false": False,
            "off": False,
            "no": False,
        }
        converted = truth.get(str(value).strip().lower())
        if converted is None:
            raise ConfigError(f"{name} must be true or false, got {value!r}")
        return converted
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be of type {kind.__name__}, got {value!r}") from error
