"""`python -m bench.kits`: SGLang's own test kits against a DAS server with the demo's model on this machine.

A test that fails is run again on a plain server: where it fails there too, the model or the machine is to blame. The
exit status is 1 if a test passes there and not with DAS.
"""

import argparse
import contextlib
import importlib
import io
import json
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

from sglang_das import machine
from sglang_das.demo.model import ensure_model
from sglang_das.demo.server import Server, detect_engine, free_ports, server_command
from sglang_das.interrupts import interrupts_as_exceptions

from .table import KITS, NOT_HERE, SPEC, Kit


def main() -> int:
    """Run what was asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench.kits", description=__doc__)
    parser.add_argument("names", nargs="*", help="kits to run; all by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings and results")
    options = parser.parse_args()
    kits = [kit for kit in KITS if not options.names or kit.name in options.names]
    with interrupts_as_exceptions(), tempfile.TemporaryDirectory() as folder:
        results = _compare(kits, Path(folder))
    if not options.names:
        for names, reason in NOT_HERE.items():
            print(f"{'not here':<14} {names}: {reason}")
    counts = {word: sum(row["result"] == word for row in results) for word in (PASSED, BOTH, FAILED)}
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    if options.json:
        content = {"machine": machine.describe(), "settings": {"kits": options.names or "all"}}
        options.json.write_text(json.dumps(content | {"results": results, "not_here": NOT_HERE}, indent=1) + "\n")
    return 1 if counts[FAILED] else 0


PASSED, FAILED, BOTH = "passed", "failed", "fails on plain"
Row = dict[str, Any]


def _compare(kits: list[Kit], folder: Path) -> list[Row]:
    """All tests with DAS, and those that fail without."""
    rows = _run("das", {kit: _all_tests(kit) for kit in kits}, folder)
    failed = {kit: [r["test"] for r in rows if r["kit"] == kit.name and r["result"] == FAILED] for kit in kits}
    failed = {kit: tests for kit, tests in failed.items() if tests}
    if failed:
        plain = {(row["kit"], row["test"]): row for row in _run("plain", failed, folder)}
        for row in rows:
            other = plain.get((row["kit"], row["test"]))
            if other is not None:
                row |= {"plain": other["reason"], "result": FAILED if other["result"] == PASSED else BOTH}
    return rows


def _all_tests(kit: Kit) -> list[str]:
    return list(unittest.defaultTestLoader.getTestCaseNames(_case(kit, {})))


def _run(arm: str, tests: dict[Kit, list[str]], folder: Path) -> list[Row]:
    """Run tests of some kits on a server of its own."""
    model, engine, log = ensure_model(), detect_engine(threads=2), folder / f"{arm}.log"
    (port,) = free_ports(1)
    command = [*server_command(arm, model, engine, slots=8, max_total_tokens=32768, port=port), *_OPTIONS]
    with Server(arm, command, port, log, engine.environment) as server:
        server.wait_ready()
        print(f"--- {arm}", flush=True)
        fixture = _fixture(server, model)
        if arm == "das" and any(kit.name == "SpecParityKit" for kit in tests):
            fixture["parity_ref_outputs"] = _undrafted(server.url)
        return [_run_test(kit, name, fixture) for kit, names in tests.items() for name in names]


_OPTIONS = ["--disable-overlap-schedule", "--enable-custom-logit-processor", "--enable-return-hidden-states"]


def _fixture(server: Server, model: Path) -> dict[str, Any]:
    """What the kits find on `self`: SGLang's fixture, save that the server is ours."""
    import openai
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer
    from sglang.test.server_fixtures.spec_eagle_fixture import SpecEagleServerBase

    helpers = ("send_request", "send_requests_abort", "run_decode")
    return {
        "base_url": server.url,
        "model": str(model),
        "process": server,  # kits ask it whether the server has ended
        "tokenizer": get_tokenizer(str(model)),
        "setUpClass": classmethod(lambda cls: None),
        "client": openai.Client(base_url=f"{server.url}/v1", api_key="none"),
        **{name: getattr(SpecEagleServerBase, name) for name in helpers},
    }


def _case(kit: Kit, fixture: dict[str, Any]) -> type[unittest.TestCase]:
    mixin = getattr(importlib.import_module(f"sglang.test.kits.{kit.module}"), kit.name)
    return type(kit.name, (mixin, unittest.TestCase), {**fixture, **kit.settings})


def _run_test(kit: Kit, name: str, fixture: dict[str, Any]) -> Row:
    started = time.monotonic()
    reason = _outcome(_case(kit, fixture)(name))
    result, seconds = FAILED if reason else PASSED, time.monotonic() - started
    print(f"{result:<14} {kit.name}.{name}, {seconds:.1f} s{f': {reason}' if reason else ''}", flush=True)
    return {"kit": kit.name, "test": name, "result": result, "reason": reason, "seconds": round(seconds, 1)}


def _outcome(case: unittest.TestCase) -> str:
    """Why it failed, or nothing. What it prints is of no interest."""
    result = unittest.TestResult()
    with contextlib.redirect_stdout(io.StringIO()):
        case.run(result)
    problems = [*result.failures, *result.errors]
    return problems[0][1].strip().splitlines()[-1] if problems else ""


def _undrafted(url: str) -> dict[str, str]:
    """Greedy outputs with drafting off, for the kit that would start a plain server of its own."""
    import requests

    kits = importlib.import_module(f"sglang.test.kits.{SPEC}")

    def switch(on: int) -> None:
        answer = requests.post(f"{url}/set_internal_state", json={"server_args": {"das_enabled": on}}, timeout=60)
        answer.raise_for_status()

    switch(0)
    try:
        return {prompt: kits._greedy(url, prompt) for prompt in kits.SpecParityKit.parity_prompts}
    finally:
        switch(1)


if __name__ == "__main__":
    sys.exit(main())
