"""When the CPU engine's parts are put in place, and when they stay away. Each case runs in a process of its own."""

import inspect
import os
import pkgutil
import subprocess
import sys

import pytest

REPORT = "import sys, sglang_das.cpu as cpu; print(cpu.install())"


def run(code, tmp_path, **environment):
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "SGLANG_USE_CPU_ENGINE"}
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=inherited | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_happens_unless_the_cpu_engine_is_asked_for(tmp_path):
    result = run(f"{REPORT}; assert 'torch' not in sys.modules; assert str(cpu.STAND_IN) not in sys.path", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "does not ask" in result.stdout


def test_real_kernels_are_left_alone(tmp_path):
    package = tmp_path / "sgl_kernel"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "common_ops.abi3.so").write_bytes(b"... convert_weight_packed ...")
    code = f"sys_path = {str(tmp_path)!r}; import sys; sys.path.insert(0, sys_path); {REPORT}"
    result = run(f"{code}; assert str(cpu.STAND_IN) not in sys.path", tmp_path, SGLANG_USE_CPU_ENGINE="1")
    assert result.returncode == 0, result.stderr
    assert "own CPU kernels" in result.stdout


def test_an_sgl_kernel_imported_before_is_refused(tmp_path):
    package = tmp_path / "sgl_kernel"
    package.mkdir()
    (package / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sgl_kernel; {REPORT}"
    result = run(code, tmp_path, SGLANG_USE_CPU_ENGINE="1")
    assert result.returncode != 0
    assert "Call sglang_das.cpu.install() before" in result.stderr


@pytest.mark.timeout(300)
def test_children_inherit_the_stand_in_and_a_second_call_changes_nothing(tmp_path):
    code = f"""{REPORT}
import os, subprocess
path, inherited = list(sys.path), os.environ["PYTHONPATH"]
assert cpu.install().startswith("CPU engine")
assert (list(sys.path), os.environ["PYTHONPATH"]) == (path, inherited)
child = "import sgl_kernel; print(sgl_kernel.__file__)"
found = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout
assert found.strip().startswith(str(cpu.STAND_IN)), found
"""
    result = run(code, tmp_path, SGLANG_USE_CPU_ENGINE="1")
    assert result.returncode == 0, result.stderr


def test_sglang_has_what_the_hooks_hold_on_to():
    from sglang_das.cpu import RELIES_ON

    for name, parameters in RELIES_ON:
        found = tuple(inspect.signature(pkgutil.resolve_name(name)).parameters)
        assert found == parameters, name
