"""A real SGLang server as a context manager: started in a process group of its own, and gone when the block ends,
however it ends.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, Self

import psutil

from ..interrupts import uninterrupted
from . import DemoError
from .arms import arm_options

START_TIMEOUT_S = 600.0
STOP_PATIENCE_S = 10.0
_LOG_TAIL_LINES = 40
_LOWEST_PORT = 15000
# A server that cannot listen says so and stays, silent, with all its processes.
_CANNOT_LISTEN = "error while attempting to bind on address"


@dataclass(frozen=True)
class Engine:
    """How SGLang runs on this machine: the options and environment all arms share."""

    name: str
    options: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def detect_engine(threads: int) -> Engine:
    """The GPU if torch sees one, else SGLang's CPU engine with `threads` OpenMP threads."""
    import torch

    if torch.cuda.is_available():
        # Seeds take part in sampling only in this mode; on a CPU the package's own sampler takes them always.
        return Engine("gpu", ["--enable-deterministic-inference"])
    # Threads that spin while they wait stall each other as soon as anything else runs on the machine.
    waiting = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    return Engine("cpu", ["--device", "cpu"], {"SGLANG_USE_CPU_ENGINE": "1"} | waiting)


def server_command(arm: str, model: Path, engine: Engine, *, slots: int, max_total_tokens: int, port: int) -> list[str]:
    """The command line of one arm's server; arms differ in `arm_options` alone."""
    shared = {
        "--model-path": str(model),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "bfloat16",
        "--max-running-requests": str(slots),
        "--max-total-tokens": str(max_total_tokens),
        "--random-seed": "1",
    }
    pairs = [word for pair in shared.items() for word in pair]
    # The servers take turns, and one that waits must not take a core from the one that works.
    return [
        sys.executable,
        "-m",
        "sglang.launch_server",
        *pairs,
        "--sleep-on-idle",
        *engine.options,
        *arm_options(arm).options,
    ]


def free_ports(count: int) -> list[int]:
    """Different TCP ports nobody listens on at the moment.

    None of those the system gives to outgoing connections: a server listens only half a minute after its start.
    """
    candidates = list(range(_LOWEST_PORT, _lowest_outgoing_port()))
    random.SystemRandom().shuffle(candidates)
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            if not candidates:
                raise DemoError(f"no {count} free TCP ports from {_LOWEST_PORT} on")
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", candidates.pop()))
                ports.append(int(probe.getsockname()[1]))
    return ports


def _lowest_outgoing_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32768  # Linux's default


class Process(Protocol):
    """What is asked of a server's process; it leads a process group. As `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """The process id."""

    def poll(self) -> int | None:
        """The exit status, None while it runs."""

    def terminate(self) -> None:
        """Ask it to end."""

    def wait(self) -> int:
        """The exit status, once it has ended."""


def launch(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Process:
    """Start `command` in a process group of its own: Ctrl-C reaches us alone, and we end all of it."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


class Server:
    """A server process with its children, listening on 127.0.0.1.

    Entering starts it, `wait_ready` waits until it answers, leaving ends the whole process group. Its output goes to
    `log`; `launch` starts it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        log: Path,
        environment: Mapping[str, str] | None = None,
        launch: Callable[[Sequence[str], Mapping[str, str], IO[bytes]], Process] = launch,
    ):
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._command = list(command)
        # What SGLang compiles when it is first used, it compiles with tools that lie beside this Python.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        self._environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": path, **(environment or {})}
        self._launch = launch
        self._process: Process | None = None

    def __enter__(self) -> Self:
        # An interrupt between the start and the note of it would leave a process that nobody ends.
        with uninterrupted(), self.log.open("wb") as log:
            self._process = self._launch(self._command, self._environment, log)
        return self

    def __exit__(self, *_: object) -> None:
        with uninterrupted():
            self._stop()

    def wait_ready(self, tick: Callable[[float], None] = lambda _: None, timeout_s: float = START_TIMEOUT_S) -> float:
        """Wait until the server answers its health check; return the seconds it took. `tick` gets the seconds so far.

        Raises:
            DemoError: the server ended or did not answer in time; the message carries the end of its log.
        """
        start = time.monotonic()
        while not self._healthy():
            waited = time.monotonic() - start
            self.require_alive()
            if _CANNOT_LISTEN in self.log.read_text(errors="replace"):
                raise DemoError(f"the {self.name} server cannot listen at {self.url}.\n{self.log_tail()}")
            if waited > timeout_s:
                raise DemoError(f"the {self.name} server did not answer within {timeout_s:.0f} s.\n{self.log_tail()}")
            tick(waited)
            time.sleep(0.5)
        return time.monotonic() - start

    def poll(self) -> int | None:
        """The exit status of the server process, or None while it runs."""
        assert self._process is not None, "the server has not been started"
        return self._process.poll()

    def require_alive(self) -> None:
        """Raise a DemoError with the end of the log if the server process has ended."""
        if (status := self.poll()) is not None:
            raise DemoError(f"the {self.name} server ended with status {status}.\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of the server's output, and where the rest is."""
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join([f"--- end of {self.log}", *lines, "---"])

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=30) as response:
                return bool(response.status == 200)
        except OSError:  # refused, reset, timed out, or an HTTP error: not ready yet
            return False

    def _stop(self) -> None:
        """Ask the server to end, give it time to end its children, and kill what is left of the group."""
        if self._process is None:
            return
        group = self._process.pid
        self._process.terminate()  # it alone: a child that ends before it is asked to looks like a crash to SGLang
        if not self._wait_gone(group, STOP_PATIENCE_S):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self._wait_gone(group, STOP_PATIENCE_S)
        self._process.wait()

    def _wait_gone(self, group: int, patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s
        while True:
            if self._process is not None:
                self._process.poll()  # collects the leader; without this it would stay a member of its group for ever
            if not group_members(group):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


def group_members(group: int) -> list[int]:
    """The live processes of a process group; those that ended and only wait to be collected are not counted."""
    members = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members
