"""The rollouts of an epoch, sent as RL frameworks send them: one `/generate` request per sample, all at once, with
`input_ids`.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from . import DemoError
from .tasks import Prompt

TOP = 8
"""How many of the likeliest tokens of each distribution are asked for."""

# A rollout's place in the run, packed into the 63 bits a non-negative int64 seed has.
_EPOCH_BITS, _PROMPT_BITS, _SAMPLE_BITS = 20, 22, 21
_MASK63 = (1 << 63) - 1
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Request:
    """One rollout to be made: which prompt and sample it is, and what the server is sent."""

    prompt: int
    sample: int
    input_ids: list[int]
    sampling_params: dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """One rollout as it came back.

    `verify_steps` counts the decode steps this request took part in: one token each on a plain server, accepted drafts
    + 1 with speculation. The first token comes from the prefill and belongs to no step. `latency_s` runs from the start
    of the epoch.
    """

    prompt: int
    sample: int
    tokens: list[int]
    verify_steps: int
    latency_s: float
    finish: str
    top_ids: list[list[int]] = field(default_factory=list)
    """Where distributions were asked for: of each token the likeliest tokens of the one it was drawn from."""
    top_probabilities: list[list[float]] = field(default_factory=list)


def rollout_seed(run: int, epoch: int, prompt: int, sample: int) -> int:
    """The sampling seed of a rollout, in [0, 2^63): within a run no two rollouts share one.

    (epoch, prompt, sample) is packed into 63 bits and then scrambled by steps that can each be undone: a whitening word
    from the run's seed, odd multiplications and xor-shifts, with the constants of SplitMix64 (Steele, Lea, Flood 2014).
    What can be undone cannot collide.
    """
    for name, value, bits in (
        ("epoch", epoch, _EPOCH_BITS),
        ("prompt", prompt, _PROMPT_BITS),
        ("sample", sample, _SAMPLE_BITS),
    ):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} must be in [0, 2^{bits}) to get a seed of its own, got {value}")
    packed = (epoch << _PROMPT_BITS | prompt) << _SAMPLE_BITS | sample
    return _scramble(packed ^ _scramble(run & _MASK64, 64), 63)


def _scramble(word: int, bits: int) -> int:
    mask = (1 << bits) - 1
    word = (word + 0x9E3779B97F4A7C15) & mask
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) & mask
    return word ^ word >> 31


def sampled_requests(
    prompts: Sequence[Prompt], samples: int, *, run_seed: int, epoch: int, temperature: float, max_new_tokens: int
) -> list[Request]:
    """All rollouts of one epoch, group by group."""
    return [
        Request(
            number,
            sample,
            prompt.input_ids,
            {
                "temperature": temperature,
                "max_new_tokens": max_new_tokens,
                "sampling_seed": rollout_seed(run_seed, epoch, number, sample),
            },
        )
        for number, prompt in enumerate(prompts)
        for sample in range(samples)
    ]


def greedy_requests(prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[Request]:
    """Each prompt once at temperature 0."""
    params = {"temperature": 0.0, "max_new_tokens": max_new_tokens}
    return [Request(number, 0, prompt.input_ids, params) for number, prompt in enumerate(prompts)]


def warm_up_requests(slots: int) -> list[Request]:
    """Short requests that fill every slot, so that one-time work is done before the clock starts; no prompt of the run
    is used.
    """
    params = {"temperature": 0.8, "max_new_tokens": 16, "ignore_eos": True}
    return [
        Request(0, sample, list(range(100 + sample, 140 + sample)), params | {"sampling_seed": sample})
        for sample in range(slots)
    ]


def run_rollouts(
    url: str, requests: Sequence[Request], done: Callable[[], None] = lambda: None, *, distributions: bool = False
) -> tuple[list[Rollout], float]:
    """Send all requests at once; return the rollouts in the order of the requests, and the makespan in seconds.

    `done` is called as each rollout comes back. `distributions` asks for those that the tokens were drawn from.

    Raises:
        DemoError: the server refused a request or went away.
    """
    return asyncio.run(_run_rollouts(url, requests, done, distributions))


async def _run_rollouts(
    url: str, requests: Sequence[Request], done: Callable[[], None], distributions: bool
) -> tuple[list[Rollout], float]:
    # Log-probabilities are those after temperature; nothing is filtered, so that is the distribution drawn from.
    wanted = {"return_logprob": True, "top_logprobs_num": TOP} if distributions else {}
    async with _session() as session:
        start = time.perf_counter()

        async def rollout(request: Request) -> Rollout:
            body = {"input_ids": request.input_ids, "sampling_params": request.sampling_params, **wanted}
            answer = await _call(session, "POST", f"{url}/generate", json=body)
            latency = time.perf_counter() - start
            done()
            return _rollout(request, answer, latency)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(rollout(request)) for request in requests]
        except ExceptionGroup as failures:  # the first tells the story; the others were cancelled or say the same
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks], time.perf_counter() - start


def _rollout(request: Request, answer: dict[str, Any], latency: float) -> Rollout:
    meta, tokens = answer["meta_info"], answer["output_ids"]
    top = meta.get("output_top_logprobs") or []  # (log-probability, token, text) of each
    return Rollout(
        request.prompt,
        request.sample,
        tokens,
        meta.get("spec_verify_ct", len(tokens) - 1),
        latency,
        (meta.get("finish_reason") or {}).get("type", "unknown"),
        [[token for _, token, *_ in row] for row in top],
        [[math.exp(log) for log, *_ in row] for row in top],
    )


def flush_cache(url: str) -> None:
    """Drop the server's KV cache, as RL frameworks do around a weight update."""
    # The server declines while a request is still leaving the batch, so it is given time to wait for that.
    asyncio.run(_once("POST", f"{url}/flush_cache", params={"timeout": "30"}))


def server_info(url: str) -> dict[str, Any]:
    """The server's arguments as it resolved them, and its internal state."""
    info: dict[str, Any] = asyncio.run(_once("GET", f"{url}/server_info"))
    return info


def das_counters(info: dict[str, Any]) -> dict[str, float] | None:
    """Running totals of the drafter from `/server_info`, summed over data-parallel ranks; None if this server has no
    drafter.
    """
    states = [state["das"] for state in info.get("internal_states") or [] if "das" in state]
    if not states:
        return None
    keys = ("drafted", "accepted", "draft_cpu_s", "failures")
    return {key: sum(state.get(key, 0) for state in states) for key in keys}


async def _once(method: str, url: str, **options: Any) -> Any:
    async with _session() as session:
        return await _call(session, method, url, **options)


def _session() -> aiohttp.ClientSession:
    # A rollout takes as long as it takes; a server that died closes its connections, which is noticed at once.
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))


async def _call(session: aiohttp.ClientSession, method: str, url: str, **options: Any) -> Any:
    try:
        async with session.request(method, url, **options) as response:
            if response.status != 200:
                raise DemoError(f"{method} {url} failed with status {response.status}: {(await response.text())[:500]}")
            return await (response.json() if response.content_type == "application/json" else response.text())
    except aiohttp.ClientError as error:
        raise DemoError(f"{method} {url} failed: {error or type(error).__name__}") from error
