"""The CPU engine's parts, tested in this process."""

import os
import warnings

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import pytest


@pytest.fixture(scope="session", autouse=True)
def cpu_engine():
    from sglang_das.cpu import install

    assert install().startswith("CPU engine")
    with warnings.catch_warnings(action="ignore"):  # SGLang's own, about the devices that are not there
        import sglang_das.cpu.sampler  # noqa: F401
