"""Interrupts as a command should meet them: clean-up always happens, and is not interrupted itself."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP while the block runs, and deliver the last of them afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers belong to the main thread; others are not interrupted by signals anyway
        return
    held: list[tuple[int, FrameType | None]] = []
    before = {number: signal.signal(number, lambda *call: held.append(call)) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[-1][0])


@contextlib.contextmanager
def interrupts_as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, with a KeyboardInterrupt, so that clean-up happens.

    A signal that is ignored stays so: under `nohup` a closed terminal must not end the run.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
