"""`das doctor`: is this installation able to serve with DAS, and if not, what is missing?

With `--lossless URL`: are the outputs of a running server the same with drafting on and off? The exit status is then 0
if they are, 1 if not, 2 if it could not be tried, 3 if it cannot be decided: plain decoding differs from itself, or no
draft was accepted.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from sglang_das.engine import compat, lossless
from sglang_das.engine.config import ConfigError, DasConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `das doctor`."""
    add = parser.add_argument
    add("--lossless", metavar="URL", help="compare the outputs of this server with drafting on and off")
    add("--max-new-tokens", type=_positive, default=64, metavar="N", help="longest rollout of that comparison")
    add("--api-key", metavar="KEY", help="the server's admin key, or its API key, if it has one")
    add("--json", type=Path, metavar="FILE", help="also write the result of that comparison to this file")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if all is well."""
    if args.lossless:
        return lossless.run(lossless.Options(args.lossless, args.max_new_tokens, args.api_key, args.json))
    return 1 if examine() else 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)


def examine() -> int:
    """Print one line per check; returns the number of problems."""
    problems = [*_versions(), *_settings(), *_needs()]
    for problem in problems:
        print(f"PROBLEM  {problem}")
    print("no problem found" if not problems else f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    return len(problems)


def _ok(text: str) -> None:
    print(f"ok       {text}")


def _versions() -> list[str]:
    import sglang_das

    _ok(f"Python {platform.python_version()}, sglang-das {sglang_das.__version__}")
    installed = compat.installed_version()
    if installed == "none":
        return [f"SGLang is not installed; pip install sglang=={compat.TESTED_VERSION}"]
    if installed != compat.TESTED_VERSION:
        return [f"SGLang {installed} is installed, {compat.TESTED_VERSION} is the tested one; see below"]
    _ok(f"SGLang {installed}")
    return []


def _settings() -> list[str]:
    try:
        config = DasConfig.load()
    except ConfigError as error:
        return [f"settings: {error}"]
    changed = {name: value for name, value in config.describe().items() if value != getattr(DasConfig(), name)}
    _ok(f"settings: {changed or 'all default'}")
    return []


def _needs() -> list[str]:
    if compat.installed_version() == "none":
        return []
    from sglang_das.cpu import install

    report = install()
    if report:
        _ok(str(report))
    if (problem := compat.check(compat.EARLY[0])) is not None:
        return [problem]
    problems = [problem for need in (*compat.EARLY, *compat.LATE) if (problem := compat.check(need)) is not None]
    if not problems:
        _ok(f"all {len(compat.EARLY) + len(compat.LATE)} names needed from SGLang are there")
    return problems
