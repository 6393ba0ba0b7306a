"""Saving a history to a file and loading it."""

import tempfile
import time
from pathlib import Path
from typing import Any

from sglang_das import RolloutHistory

from . import data
from .expiry import store_history


def measure(workload: data.Workload) -> dict[str, Any]:
    """The figures of one case; a history is loaded when its trees are made."""
    structure, _ = store_history(workload)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "history"
        start = time.perf_counter()
        structure.history.save(file)
        saved = time.perf_counter()
        RolloutHistory.load(file).maintain()
        loaded = time.perf_counter()
        size = file.stat().st_size
    return {
        "save_ms": (saved - start) * 1e3,
        "load_ms": (loaded - saved) * 1e3,
        "file_bytes_per_token": size / workload.tokens,
    }
