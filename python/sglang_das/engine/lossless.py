"""`das doctor --lossless URL`: can anybody tell from this server's outputs whether DAS drafts?

The server is asked for the same rollouts with drafting off and on, greedy and with seeds, all at once and alone, and
repeatedly, so that there is history to draft from. Plain decoding is compared with itself too: where that differs, as
on a GPU without batch-invariant kernels, no drafting could be shown to be the same. See EXACTNESS.md.

Only the standard library is needed here, so that a server may be examined from anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from sglang_das import machine
from sglang_das.engine.comparison import Comparison, Outcome, Rollout, compare, judge
from sglang_das.interrupts import interrupts_as_exceptions, uninterrupted

TEXTS = (
    "Question: Anna has 12 apples, buys 7 more and gives 5 away. How many are left? Let us think step by step.",
    "The first forty prime numbers, in order and separated by commas, are: 2, 3, 5, 7, 11,",
    "A function in Python that merges two sorted lists, and three examples of its use:\n\ndef merge(a, b):",
    "Once upon a time there was a mill at the edge of a great forest, and in the mill there lived",
)
TEMPERATURES = (0.6, 1.0)
SAMPLES = 2  # of a prompt at each temperature
_SETTING = "das_enabled"
_TIMEOUT_S = 1800.0


class LosslessError(RuntimeError):
    """The server cannot be examined: the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to ask for."""

    url: str
    max_new_tokens: int = 64
    api_key: str | None = None
    json: Path | None = None


def run(options: Options) -> int:
    """Examine and say what was found; returns the exit status: an `Outcome`, or 2 if the comparison was not made."""
    try:
        with interrupts_as_exceptions():
            return _examine(options)
    except LosslessError as error:
        print(f"das doctor: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("das doctor: interrupted; drafting is as it was", file=sys.stderr)
        return 130


def _examine(options: Options) -> int:
    server = Server(options.url, options.api_key)
    before = server.check()
    _say("server", f"{options.url}: {server.describe()}")
    requests = make_requests(server, options.max_new_tokens)
    with drafting_restored(server, before):
        server.switch(False)
        plain, reproducible = _plain(server, requests)
        server.switch(True)
        started = server.das()
        rollouts = _drafted(server, requests)
        ended = server.das()
    das = compare(plain, rollouts)
    proposed, accepted = sum(r.proposed for r in rollouts), sum(r.accepted for r in rollouts)
    _require_undisturbed(started, ended)
    outcome, words = judge(reproducible, das, accepted)

    _say("plain", f"{reproducible.compared} rollouts repeated, {_describe(reproducible)}")
    _say("das", f"{das.compared} rollouts with drafts, {_describe(das)}")
    _say("drafts", f"{proposed} tokens drafted, {accepted} accepted")
    if das.logprobs:
        _say("logprob", f"largest difference {das.logprob_gap:.2g}, of plain runs {reproducible.logprob_gap:.2g}")
    for label, comparison in (("plain/plain", reproducible), ("plain/das", das)):
        for difference in comparison.differences[:1]:
            _say("first", f"{label}: {difference.describe()}")
    print(f"{outcome.name}: {words}.")
    for note in [*server.notes(outcome), *_others(started, ended, rollouts)]:
        print(f"note: {note}")
    if options.json:
        content = {
            "machine": machine.describe(),
            "settings": {**dataclasses.asdict(options), "json": None, "api_key": None, "server": server.describe()},
            "outcome": outcome.name.lower(),
            "identical": das.same,
            "compared": das.compared,
            "differences": [dataclasses.asdict(difference) for difference in das.differences],
            "drafted": proposed,
            "accepted": accepted,
            "logprob_gap": das.logprob_gap,
            "plain": {"compared": reproducible.compared, "differences": len(reproducible.differences)},
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return int(outcome)


def _plain(server: Server, requests: list[Request]) -> tuple[list[Rollout], Comparison]:
    """Plain decoding, and how it compares with itself: again all at once, and some alone."""
    plain = server.rollouts(requests, "plain, all at once")
    again = server.rollouts(requests, "plain, again")
    alone = server.rollouts([r for r in requests if r.alone], "plain, one by one", at_once=1)
    return plain, compare(plain, [*again, *alone])


def _drafted(server: Server, requests: list[Request]) -> list[Rollout]:
    """With drafts: from siblings, then from the same rollouts as history, then alone."""
    first = server.rollouts(requests, "drafted, all at once")
    again = server.rollouts(requests, "drafted, with these as history")
    return [*first, *again, *server.rollouts([r for r in requests if r.alone], "drafted, one by one", at_once=1)]


def _require_undisturbed(started: list[dict[str, Any]], ended: list[dict[str, Any]]) -> None:
    for a, b in zip(started, ended, strict=True):
        if b["state"] != "on":
            raise LosslessError(f"drafting went {b['state']} meanwhile; the server's log says more")
        if a["policy_version"] != b["policy_version"]:
            raise LosslessError("the weights were updated meanwhile; run it again when the server is left alone")


def _others(started: list[dict[str, Any]], ended: list[dict[str, Any]], rollouts: list[Rollout]) -> list[str]:
    steps = sum(b["request_steps"] - a["request_steps"] for a, b in zip(started, ended, strict=True))
    if steps == sum(rollout.steps for rollout in rollouts):
        return []
    return ["other requests were served meanwhile"]


def _describe(comparison: Comparison) -> str:
    different = len(comparison.differences)
    return f"{comparison.tokens} tokens: {f'{different} rollouts differ' if different else 'all the same'}"


def _say(label: str, text: str) -> None:
    print(f"{label:<8} {text}", flush=True)


# What is asked for


@dataclasses.dataclass(frozen=True)
class Request:
    """A request, and how it is repeated."""

    name: str
    greedy: bool
    alone: bool
    """Whether it is also sent on its own."""
    body: dict[str, Any]


def make_requests(server: Server, max_new_tokens: int) -> list[Request]:
    """Greedy and, where seeds count, seeded samples of each prompt; half of them with log-probabilities.

    No filters: the engine's sampler lets them change how the noise of the whole batch is keyed.
    """
    settings = [(0.0, 0), *((t, s) for t in TEMPERATURES if server.heeds_seeds for s in range(SAMPLES))]
    requests = []
    for p, prompt in enumerate(server.prompts()):
        for temperature, sample in settings:
            seed = 1_000_000 * (p + 1) + 1_000 * round(10 * temperature) + sample
            sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens, "ignore_eos": p % 2 == 1}
            if temperature:
                sampling["sampling_seed"] = seed
            body: dict[str, Any] = {**prompt, "sampling_params": sampling}
            if (p + sample) % 2 == 0:
                body |= {"return_logprob": True, "top_logprobs_num": 2}
            kind = f"temperature {temperature}, seed {seed}" if temperature else "greedy"
            requests.append(Request(f"prompt {p}, {kind}", not temperature, sample == 0, body))
    return requests


# The server


class Server:
    """A DAS server, spoken to over HTTP."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """`api_key` is the server's (admin) key, if it has one."""
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._info: dict[str, Any] = {}

    def check(self) -> list[dict[str, Any]]:
        """Look whether it can be examined, and return the drafters' states.

        Raises:
            LosslessError: it does not answer, runs without DAS, has ceased drafting after an error, or is busy.
        """
        self._info = self.call("/server_info")
        states = self.das()
        for state in states:
            if state["state"].startswith("off (error"):
                raise LosslessError(
                    f"drafting is {state['state']}; report it with the server's log, and switch it on again by "
                    f'POST /set_internal_state {{"server_args": {{"{_SETTING}": 1}}}}'
                )
        busy = sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in self.call("/v1/loads")["loads"])
        if busy:
            raise LosslessError(
                f"the server is busy with {busy} requests, and drafting would be switched off for them too; "
                "run it when the server is left alone"
            )
        return states

    def das(self) -> list[dict[str, Any]]:
        """The drafters' states, one a data-parallel rank."""
        states = [s["das"] for s in self.call("/server_info").get("internal_states") or [] if "das" in s]
        if not states:
            raise LosslessError(f"{self.url} runs without DAS; start it with --speculative-algorithm DAS")
        return states

    def switch(self, on: bool) -> None:
        """Switch drafting.

        Raises:
            LosslessError: it did not happen.
        """
        self.call("/set_internal_state", {"server_args": {_SETTING: int(on)}})
        for state in self.das():
            if (state["state"] == "on") != on:
                raise LosslessError(f"drafting is {state['state']} after it was switched {'on' if on else 'off'}")

    def rollouts(self, requests: list[Request], what: str, at_once: int = 64) -> list[Rollout]:
        """Answers to the requests. Greedy ones and others take turns: together they would change how the engine's
        seeded sampler keys its noise.
        """
        print(f"... {what}", file=sys.stderr, flush=True)
        kinds = ([r for r in requests if r.greedy], [r for r in requests if not r.greedy])
        return [rollout for kind in kinds for rollout in self._generate(kind, at_once)]

    def _generate(self, requests: list[Request], at_once: int) -> list[Rollout]:
        run = uuid.uuid4().hex
        bodies = [{**request.body, "rid": f"das-doctor-{run}-{i}"} for i, request in enumerate(requests)]
        pool = ThreadPoolExecutor(at_once)
        running: dict[Future[Any], dict[str, Any]] = {}
        try:
            for body in bodies:
                running[pool.submit(self.call, "/generate", body)] = body
            answers = [future.result() for future in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self._abort(running)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return [Rollout.of(request.name, answer) for request, answer in zip(requests, answers, strict=True)]

    def _abort(self, running: dict[Future[Any], dict[str, Any]]) -> None:
        """End requests. One the server has not heard of yet cannot be aborted, so it is told until all have ended."""
        # `wait` takes those that were cancelled before they began for unfinished, for ever.
        while left := [future for future in running if not future.done()]:
            wait(left, timeout=0.2)
            for future in (future for future in left if not future.done()):
                with contextlib.suppress(LosslessError):
                    self.call("/abort_request", {"rid": running[future]["rid"]}, empty=True)

    def call(self, path: str, body: dict[str, Any] | None = None, *, empty: bool = False) -> Any:
        """The JSON that a route answers; without a body it is a GET; `empty` answers hold none."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                return None if empty else json.load(answer)
        except urllib.error.HTTPError as error:
            remedy = "; give the server's (admin) key by --api-key" if error.code in (401, 403) else ""
            text = error.read().decode(errors="replace")[:300]
            raise LosslessError(f"{self.url}{path}: {error.code} {error.reason} {text}{remedy}") from error
        except (OSError, ValueError) as error:
            raise LosslessError(f"{self.url}{path}: {error}; is a server running there?") from error

    @property
    def heeds_seeds(self) -> bool:
        """Whether per-request seeds take part in sampling: always on the CPU engine, else in deterministic mode."""
        return self._info.get("device") == "cpu" or bool(self._info.get("enable_deterministic_inference"))

    def prompts(self) -> list[dict[str, Any]]:
        """Prompts as parts of a request: texts, or where the server has no tokenizer, token ids any model has."""
        if not self._info.get("skip_tokenizer_init"):
            return [{"text": text} for text in TEXTS]
        return [{"input_ids": [3 + (11 * i * (p + 3) + p) % 200 for i in range(24)]} for p in range(len(TEXTS))]

    def describe(self) -> str:
        """What it is, in a line."""
        info = self._info
        return f"{info.get('model_path')}, {info.get('device')}, {info.get('dtype')}, SGLang {info.get('version')}"

    def notes(self, outcome: Outcome) -> list[str]:
        """What an outcome should be read with."""
        notes = []
        if not self.heeds_seeds:
            notes.append(
                "only greedy rollouts were compared: on a GPU seeds take part in sampling only under "
                "--enable-deterministic-inference, which also makes arithmetic independent of the batch"
            )
        if outcome is Outcome.DIFFERENT and self._info.get("device") != "cpu":
            notes.append(
                "on a GPU verification and decoding may use different kernels: where the likeliest tokens above are "
                "nearly equal, the difference is one of rounding"
            )
        return notes


@contextlib.contextmanager
def drafting_restored(server: Server, states: list[dict[str, Any]]) -> Iterator[None]:
    """Leave drafting on or off as it was, however the block ends."""
    try:
        yield
    finally:
        with uninterrupted():
            try:
                server.switch(all(state["state"] == "on" for state in states))
            except LosslessError as error:
                print(f"das doctor: drafting could not be left as it was: {error}", file=sys.stderr)
