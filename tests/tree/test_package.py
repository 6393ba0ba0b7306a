"""The package as others see it: types, imports, the documented example."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import sglang_das


@pytest.mark.timeout(120)
def test_the_stub_agrees_with_the_module(tmp_path: Path) -> None:
    # PyO3 adds `__all__` to the module; nobody imports * from it.
    allowed = tmp_path / "allowed"
    allowed.write_text("sglang_das._native.__all__\n")
    check = [sys.executable, "-m", "mypy.stubtest", "sglang_das._native", "--allowlist", str(allowed)]
    done = subprocess.run(check, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_needs_neither_sglang_nor_torch() -> None:
    script = (
        "import sys, sglang_das; "
        "sglang_das.SuffixTree().sequence().append([1]); "
        "print([name for name in ('sglang', 'torch', 'sgl_kernel', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_works() -> None:
    results = doctest.testmod(sglang_das)
    assert results.attempted > 5
    assert results.failed == 0
