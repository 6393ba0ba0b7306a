"""The entry point SGLang loads in every process (group `sglang.srt.plugins`, see `sglang/srt/plugins/__init__.py`).

It stays import-light: the worker, torch and anything that needs SGLang's kernels are imported when the engine asks for
them.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback

logger = logging.getLogger(__name__)

ALGORITHM = "DAS"


def register() -> None:
    """Make `--speculative-algorithm DAS` known to this process, and the CPU engine usable. Idempotent.

    SGLang logs a plugin's exception and goes on, which would surface much later as an unknown algorithm name; where DAS
    was asked for, the reason is printed and the process ends instead.
    """
    try:
        _register()
    except Exception:
        if not _das_requested():
            raise
        traceback.print_exc()
        sys.stderr.write(
            "sglang-das could not be registered; see above. Run `das doctor` for a check of the installation.\n"
        )
        sys.stderr.flush()
        os._exit(1)


def _register() -> None:
    from sglang_das.cpu import install

    report = install()
    if report:
        logger.info("sglang-das: %s", report)

    from sglang.srt.speculative.spec_registry import get_spec

    if get_spec(ALGORITHM) is not None:
        return

    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    from sglang_das.engine import compat, control
    from sglang_das.engine.algorithm import DasAlgorithm

    compat.require()
    SpeculativeAlgorithm.register(ALGORITHM, supports_overlap=True, spec_class=DasAlgorithm)(_worker_class)
    HookRegistry.register(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._calculate_spec_decoding_metrics",
        control.correct_figures,
        HookType.AFTER,
    )


def _worker_class(server_args: object) -> type:
    """The worker, imported late: its module needs the engine's kernels."""
    del server_args
    from sglang_das.engine.worker import DasWorker

    return DasWorker


def _das_requested() -> bool:
    arguments = [argument.upper() for argument in sys.argv]
    return any(argument == ALGORITHM or argument.endswith(f"ALGORITHM={ALGORITHM}") for argument in arguments)
