"""Where DAS shows itself in the engine and hears from it: server info, per-request figures, weight updates, the queue,
run-time switch.

The engine has no extension point for these, so a few of its methods are wrapped, in the scheduler's process when the
worker is made, `correct_figures` in the tokenizer's. `compat` lists and checks them.
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
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.scheduler_components.internal_state import SchedulerInternalStateController
    from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
    from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

    _widen_rows()
    _after(SchedulerInternalStateController, "_add_speculative", _show_state)
    _after(SchedulerInternalStateController, "_update_handlers", _add_switch)
    _after(SchedulerWeightUpdaterManager, "record_weight_version_after_update", _hear_of_update)
    _after(SchedulerWeightUpdaterManager, "end_weight_update", _hear_of_session)
    _after(Scheduler, "send_abort_output", _hear_of_abort)
    _after(Scheduler, "get_next_batch_to_run", _hear_of_queue)
    _after(Scheduler, "handle_shutdown", _hear_of_shutdown)
    _after(SchedulerOutputStreamer, "is_request_level_customized_info_key", _is_request_figure)


def _widen_rows() -> None:
    """Make a request's row in the key-value index as long as a step may need at the end of the context.

    The engine reserves two widths beyond the committed tokens at every step, but its rows have room for one.
    """
    from sglang.srt.mem_cache import allocation_sizing, kv_cache_configurator

    original = kv_cache_configurator.get_req_to_token_extra_context_len

    @functools.wraps(original)
    def extra_context_len() -> int:
        reserved = allocation_sizing.get_alloc_reserve_per_decode() + allocation_sizing.get_alloc_page_size()
        return max(int(original()), int(reserved))

    kv_cache_configurator.get_req_to_token_extra_context_len = extra_context_len


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


def _hear_of_update(result: Any, manager: Any, *arguments: Any, **named: Any) -> Any:
    """Weights were loaded; within a session, which may load them in many parts, its end counts instead."""
    del arguments, named
    if _worker is not None and manager._session is None:
        _worker.on_weight_update()
    return result


def _hear_of_session(result: Any, *arguments: Any, **named: Any) -> Any:
    del arguments, named
    if _worker is not None and result.success:
        _worker.on_weight_update()
    return result


def _hear_of_abort(result: Any, scheduler: Any, abort: Any, request: Any) -> Any:
    """A request left the queue without another step."""
    del scheduler, abort
    if _worker is not None:
        _worker.on_abort(request)
    return result


def _hear_of_queue(result: Any, scheduler: Any, *arguments: Any, **named: Any) -> Any:
    """A batch was chosen; so many requests were not in it."""
    del arguments, named
    if _worker is not None:
        _worker.on_queue(len(scheduler.waiting_queue))
    return result


def _hear_of_shutdown(result: Any, *arguments: Any) -> Any:
    """The server was asked to end, and all requests have."""
    del arguments
    if _worker is not None:
        _worker.on_shutdown()
    return result


def _is_request_figure(result: bool, streamer: Any, key: str) -> bool:
    del streamer
    return result or key == "das"


def correct_figures(result: Any, manager: Any, meta_info: dict[str, Any], *arguments: Any) -> Any:
    """Put a request's own figures in its `meta_info`, in the tokenizer's process.

    The engine counts the maximum width as proposed at every step (`TokenizerManager._calculate_spec_decoding_metrics`).
    """
    del manager, arguments
    if isinstance(figures := meta_info.get("das"), list) and figures:
        figures = meta_info["das"] = figures[-1]
        proposed, accepted = figures["proposed"], figures["accepted"]
        meta_info["spec_num_proposed_drafts"] = proposed
        meta_info["spec_accept_rate"] = accepted / proposed if proposed else 0.0
    elif figures is not None:  # the engine gives every request of a message an entry if one of them has any
        del meta_info["das"]
    return result
