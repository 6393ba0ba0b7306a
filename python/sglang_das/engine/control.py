"""Where DAS shows itself in the engine and hears from it: server info, per-request figures, weight updates, run-time
switch.

The engine has no extension point for these, so a few of its methods are wrapped, in the scheduler's process only and
when the worker is made. `compat` lists and checks them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang_das.engine.worker import DasWorker

_worker: DasWorker | None = None


def attach(worker: DasWorker) -> None:
    """Connect the worker of this process; a second worker in one process takes the first one's place."""
    global _worker
    first = _worker is None
    _worker = worker
    if first:
        _wrap_engine()


def _wrap_engine() -> None:
    from sglang.srt.managers.scheduler_components.internal_state import SchedulerInternalStateController
    from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
    from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

    _after(SchedulerInternalStateController, "_add_speculative", _show_state)
    _after(SchedulerInternalStateController, "_update_handlers", _add_switch)
    _after(SchedulerWeightUpdaterManager, "record_weight_version_after_update", _hear_of_update)
    _after(SchedulerOutputStreamer, "is_request_level_customized_info_key", _is_request_figure)


def _after(owner: type, name: str, then: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        return then(original(*arguments, **named), *arguments, **named)

    setattr(owner, name, wrapped)


def _show_state(result: Any, controller: Any, state: dict[str, Any]) -> Any:
    """`/server_info`: `internal_states[i]["das"]`."""
    del controller
    if _worker is not None:
        state["das"] = _worker.describe()
    return result


def _add_switch(handlers: dict[str, Any], controller: Any) -> dict[str, Any]:
    """`/set_internal_state` takes `{"server_args": {"das_enabled": 0 or 1}}`; all ranks apply it in the same step."""
    del controller
    from sglang.srt.managers.scheduler_components.internal_state import UpdateRejected, _UpdateHandler

    def validate(key: str, value: Any) -> None:
        if value not in (0, 1):
            raise UpdateRejected(f"{key} must be 0 or 1, got {value!r}")

    def apply(key: str, value: Any) -> None:
        del key
        if _worker is not None:
            _worker.set_enabled(bool(value))

    return {**handlers, "das_enabled": _UpdateHandler(validate, apply)}


def _hear_of_update(result: Any, *arguments: Any, **named: Any) -> Any:
    del arguments, named
    if _worker is not None:
        _worker.on_policy_version()
    return result


def _is_request_figure(result: bool, streamer: Any, key: str) -> bool:
    del streamer
    return result or key == "das"
