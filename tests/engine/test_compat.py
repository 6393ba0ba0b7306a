"""The table of what DAS needs from SGLang holds for the installed version, and says what is missing elsewhere."""

import os
import subprocess
import sys

import pytest
from sglang_das.engine import compat


def test_the_installed_engine_has_everything():
    environment = os.environ | {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "sglang_das.cli", "doctor"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "no problem found" in run.stdout


@pytest.mark.parametrize(
    ("need", "complaint"),
    [
        (compat.Need("no_such_engine.worker", "Worker"), "no_such_engine.worker cannot be imported"),
        (compat.Need("json", "JSONDecoder.speculate"), "json.JSONDecoder.speculate is missing"),
        (compat.Need("json", "dumps", ("obj", "draft")), "json.dumps does not take draft"),
    ],
)
def test_what_is_missing_is_named(need, complaint):
    with pytest.raises(compat.IncompatibleEngine, match=complaint) as caught:
        compat.require([need])
    assert f"pip install sglang=={compat.TESTED_VERSION}" in str(caught.value)
