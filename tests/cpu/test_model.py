"""The whole model: a row's logits have the same bits alone, in any batch, decoded, verified or prefilled again."""

import subprocess
import sys
from pathlib import Path

import pytest

from ..server.support import build_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"), vocabulary=256, sharpness=3.0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rows_have_the_same_bits_in_every_forward_pass(model, dtype):
    command = [sys.executable, "-m", "tests.cpu.model_rows", str(model), dtype]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert "every row has the same bits" in result.stdout, result.stderr[-2000:]
