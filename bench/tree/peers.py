"""Environments with the peers' own packages, made when first needed and kept in the user's cache."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ARCTIC = "0.3.0"
SGLANG = "0.5.23"

_NO_TORCH = '''"""Stands in for torch while ArcticInference is built, which only asks for a path and for CUDA."""


class utils:
    cmake_prefix_path = ""


class cuda:
    is_available = staticmethod(lambda: False)
'''


def interpreter(structure: str) -> str:
    """The Python that can import a structure, installing what it lacks.

    Raises RuntimeError if an installation fails.
    """
    if structure.startswith("arctic"):
        return _environment(f"arctic-{ARCTIC}", _install_arctic)
    if structure == "ngram" and _installed("sglang") != SGLANG:
        return _environment(f"sglang-{SGLANG}", _install_sglang)
    return sys.executable


def versions() -> dict[str, str]:
    """What the peers are."""
    return {"arctic-inference": ARCTIC, "sglang": SGLANG}


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _environment(name: str, install: Callable[[Path], None]) -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "sglang-das" / "bench" / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    python, done = folder / "bin" / "python", folder / ".complete"
    if not done.exists():
        print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run([_uv(), "venv", "--quiet", "--python", sys.executable, str(folder)], {})
        install(folder)
        done.touch()
    return str(python)


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise RuntimeError("uv is not installed, and it installs what is compared: pip install uv")
    return found


def _run(command: list[str], environment: dict[str, str]) -> None:
    outcome = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{outcome.stderr[-2000:]}")


def _pip(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
    command = [_uv(), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *arguments]
    _run(command, environment or {})


def _install_arctic(folder: Path) -> None:
    """It comes as source only and names torch as a build dependency, for a path."""
    _pip(folder, "setuptools", "wheel", "ninja", "cmake>=3.12", "nanobind==2.9.2", "numpy")
    stand_in = folder / "no-torch" / "torch"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text(_NO_TORCH)
    path = {
        "PYTHONPATH": str(stand_in.parent),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder),
    }
    _pip(folder, "--no-deps", "--no-build-isolation", f"arctic-inference=={ARCTIC}", environment=path)


def _install_sglang(folder: Path) -> None:
    _pip(folder, "ninja", f"sglang=={SGLANG}")
