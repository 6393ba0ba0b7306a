"""What a measurement ran on: every command that measures writes this beside its numbers."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_PACKAGES = ("sglang-das", "sglang", "torch", "transformers", "numpy")


def describe() -> dict[str, Any]:
    """Processor, cores this process may use, memory in bytes, system, and the versions of what matters here."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def _cpu_model() -> str:
    cpus = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows as much as anyone
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
