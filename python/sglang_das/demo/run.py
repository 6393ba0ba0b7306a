"""Rollouts of a real model through real SGLang servers, one per arm: the same prompts, the same seeds, for several
epochs.

Each epoch sends all samples of all prompts at once to a server with fewer slots, as RL frameworks do, and flushes its
cache afterwards. All servers stay up and take turns, epoch by epoch, so that whatever else the machine does hits them
alike; only the one whose turn it is gets requests. The exit status is 0 if every rollout is token for token the plain
server's, 1 if not, 2 if the comparison could not be run.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..interrupts import interrupts_as_exceptions
from ..screen import Screen
from . import DemoError, client
from .arms import arm_options
from .model import ensure_model
from .recording import Recorder, open_recording
from .report import GREEDY, Comparison, EpochRow, Report, epoch_row, lengths
from .server import Engine, Server, detect_engine, free_ports, server_command
from .tasks import Prompt, make_prompts

# Short and long answers mixed, so that a step has a tail.
DEFAULT_TASKS = (
    "gsm_symbolic,chain_sum,simple_equations,time_intervals,"
    "prime_factorization,letter_counting,lcm,fraction_simplification"
)


@dataclass(frozen=True)
class Settings:
    """What to compare, as asked for on the command line."""

    tasks: list[str]
    prompts: int
    samples: int
    epochs: int
    temperature: float
    max_new_tokens: int
    slots: int
    seed: int
    threads: int
    arms: list[str]
    json: Path | None = None
    record: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `das demo`."""
    add = parser.add_argument
    add("--tasks", type=_names, default=DEFAULT_TASKS, metavar="NAMES", help="reasoning-gym tasks, taken in turn")
    add("--prompts", type=_at_least(1), default=8, metavar="N", help="prompts per epoch")
    add("--samples", type=_at_least(1), default=8, metavar="G", help="rollouts per prompt and epoch")
    add("--epochs", type=_at_least(1), default=3, metavar="E", help="epochs; the first is cold")
    add("--temperature", type=_temperature, default=0.8, metavar="T", help="sampling temperature of the timed epochs")
    add("--max-new-tokens", type=_at_least(2), default=384, metavar="M", help="longest rollout, in tokens")
    add("--slots", type=_at_least(1), default=8, metavar="R", help="requests a server runs at once; the others queue")
    add("--seed", type=int, default=0, metavar="S", help="seed of the run: prompts and every rollout's sampling seed")
    add("--threads", type=_at_least(1), default=2, metavar="C", help="OpenMP threads of each server (CPU engine)")
    add("--arms", type=_names, default="plain,das", metavar="NAMES", help="servers to compare: plain, das, ngram")
    add(
        "--record",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="record the first arm's rollouts for replay",
    )
    add("--json", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="also write the report to this file")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"expected different names separated by commas, got {text!r}")
    return names


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
        return int(text)

    return parse


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 100.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 100, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """Run the comparison the arguments ask for; return the exit status."""
    names = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    try:
        with interrupts_as_exceptions():
            return _compare(Settings(**names))
    except DemoError as error:
        print(f"das demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("das demo: interrupted; all servers have been ended", file=sys.stderr)
        return 130


def _compare(settings: Settings) -> int:
    for arm in settings.arms:
        arm_options(arm)  # an unknown one is named before anything is started
    if settings.json is not None and not settings.json.parent.is_dir():
        raise DemoError(f"--json {settings.json}: there is no folder {settings.json.parent}")
    screen = Screen()
    logs = Path(tempfile.mkdtemp(prefix="das-demo-"))
    report = _measure(settings, screen, logs)
    shutil.rmtree(logs)  # kept when something failed
    report.show(screen)
    if settings.json is not None:
        report.write(settings.json)
        screen.line(f"Written to {settings.json}")
    return 1 if report.comparison.differences else 0


def _measure(settings: Settings, screen: Screen, logs: Path) -> Report:
    """Start the servers, run the epochs and the greedy comparison."""
    model = ensure_model(say=screen.line)
    prompts = make_prompts(settings.tasks, settings.prompts, model, settings.seed)
    engine = detect_engine(settings.threads)
    longest = max(len(prompt.input_ids) for prompt in prompts) + settings.max_new_tokens
    with ExitStack() as stack:
        recorder = None
        if settings.record is not None:
            recorder = Recorder(stack.enter_context(open_recording(settings.record)), prompts)
            screen.line(
                f"The rollouts of {settings.arms[0]} are recorded, which costs that server time: "
                "compare times of runs without --record."
            )
        servers = {}
        for arm, port in zip(settings.arms, free_ports(len(settings.arms)), strict=True):
            command = server_command(
                arm,
                model,
                engine,
                slots=settings.slots,
                # Room for every slot's longest rollout and its drafts, and as much again for cached prefixes.
                max_total_tokens=2 * settings.slots * (longest + 64),
                port=port,
            )
            environment = engine.environment | arm_options(arm).environment
            log = logs / f"{re.sub('[^a-z0-9]', '-', arm)}.log"
            servers[arm] = stack.enter_context(Server(arm, command, port, log, environment))
        for server in servers.values():
            with screen.waiting(f"starting the {server.name} server, log {server.log}") as tick:
                server.wait_ready(tick)
        shared = _shared_settings(servers)
        screen.line(_introduction(settings, engine, shared))
        arms = {arm: Arm(server, screen) for arm, server in servers.items()}
        return _run_epochs(settings, prompts, arms, screen, {"engine": engine.name} | shared, recorder)


class Arm:
    """One kind of server and what is asked of it."""

    def __init__(self, server: Server, screen: Screen):
        self._server = server
        self._screen = screen

    @property
    def name(self) -> str:
        """The arm's name."""
        return self._server.name

    def rollouts(
        self, label: str, requests: list[client.Request], *, distributions: bool = False
    ) -> tuple[list[client.Rollout], float]:
        """Send the requests and wait for all of them; return the rollouts and the makespan in seconds."""
        with self._explaining(), self._screen.progress(f"{label}, {self.name}", len(requests)) as done:
            return client.run_rollouts(self._server.url, requests, done, distributions=distributions)

    def epoch(
        self, number: int, requests: list[client.Request], *, distributions: bool = False
    ) -> tuple[list[client.Rollout], EpochRow]:
        """One timed epoch; the cache is flushed afterwards, as around a weight update."""
        before = self._counters()
        rollouts, makespan_s = self.rollouts(f"epoch {number}", requests, distributions=distributions)
        after = self._counters()
        gained = {key: after[key] - before[key] for key in after} if before and after else None
        if gained and gained["failures"]:
            self._screen.line(f"{self.name}: drafting failed and was turned off, see {self._server.log}")
        with self._explaining():
            client.flush_cache(self._server.url)
        return rollouts, epoch_row(number, self.name, makespan_s, rollouts, gained)

    def _counters(self) -> dict[str, float] | None:
        with self._explaining():
            return client.das_counters(client.server_info(self._server.url))

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except DemoError as error:
            raise DemoError(f"{error}\n{self._server.log_tail()}") from error


def _run_epochs(
    settings: Settings,
    prompts: list[Prompt],
    arms: dict[str, Arm],
    screen: Screen,
    shared: dict[str, Any],
    recorder: Recorder | None,
) -> Report:
    recorded = settings.arms[0] if recorder else None
    for arm in arms.values():
        arm.rollouts("warm-up", client.warm_up_requests(settings.slots))
    rows: list[EpochRow] = []
    everything: list[client.Rollout] = []
    comparison = Comparison()
    for epoch in range(1, settings.epochs + 1):
        requests = client.sampled_requests(
            prompts,
            settings.samples,
            run_seed=settings.seed,
            epoch=epoch,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
        )
        # Whoever goes first alternates, so that a machine growing faster or slower favours nobody.
        order = list(arms.values()) if epoch % 2 else list(arms.values())[::-1]
        outcome = {arm.name: arm.epoch(epoch, requests, distributions=arm.name == recorded) for arm in order}
        if recorder:
            recorder.write(epoch, requests, outcome[settings.arms[0]][0])
        counts = comparison.add(epoch, {name: rollouts for name, (rollouts, _) in outcome.items()})
        rows += [replace(outcome[name][1], identical=counts.get(name)) for name in arms]
        everything += outcome[settings.arms[0]][0]
        screen.line(f"epoch {epoch}: " + ", ".join(f"{name} {outcome[name][1].makespan_s:.1f} s" for name in arms))
    if len(arms) > 1:
        greedy = client.greedy_requests(prompts, max_new_tokens=settings.max_new_tokens)
        comparison.add(GREEDY, {name: arm.rollouts("greedy", greedy)[0] for name, arm in arms.items()})
    used = {name: value for name, value in asdict(settings).items() if name not in ("json", "record")}
    used |= {"rollouts_per_epoch": settings.prompts * settings.samples, "server": shared}
    return Report(used, rows, lengths(everything), comparison)


def _shared_settings(servers: dict[str, Server]) -> dict[str, Any]:
    """What the servers say they run with; a comparison of servers that differ in it would mean nothing."""
    keys = ("device", "dtype", "attention_backend", "sampling_backend", "max_running_requests")
    told = {}
    for arm, server in servers.items():
        info = client.server_info(server.url)
        told[arm] = {key: info.get(key) for key in keys}
    first, *others = told.values()
    if any(other != first for other in others):
        raise DemoError(f"the servers do not run with the same settings: {told}")
    return first


def _introduction(settings: Settings, engine: Engine, shared: dict[str, Any]) -> str:
    threads = f", {settings.threads} OpenMP threads" if engine.name == "cpu" else ""
    return (
        f"{settings.prompts} prompts ({', '.join(settings.tasks)}) x {settings.samples} samples, "
        f"temperature {settings.temperature}, up to {settings.max_new_tokens} new tokens.\n"
        f"Servers: {', '.join(settings.arms)}; each with {shared['device']} engine, dtype {shared['dtype']}, "
        f"attention {shared['attention_backend']}, sampler {shared['sampling_backend']}, "
        f"{settings.slots} slots{threads}.\n"
        "They stay up and take turns, epoch by epoch; the one that waits sleeps. "
        "Every rollout has a seed of its own, the same on each."
    )
