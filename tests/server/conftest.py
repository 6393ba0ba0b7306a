"""Real SGLang servers on small random models, started once per session and kind."""

import contextlib
import os
from pathlib import Path

import pytest

from .support import Client, build_model, start_server

FAULTS = Path(__file__).parent / "faults"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random Llama with 256 tokens, peaked enough that its sampled text repeats itself and can be drafted."""
    return build_model(tmp_path_factory.mktemp("model"), vocabulary=256, sharpness=6.0)


@pytest.fixture(scope="session")
def servers(model, tmp_path_factory):
    """`servers(kind, dtype)` starts (once) a server and returns a client of it."""
    with contextlib.ExitStack() as stack:
        running: dict[tuple[str, str], Client] = {}

        def get(kind, dtype="float32"):
            if (kind, dtype) not in running:
                log = tmp_path_factory.mktemp("logs") / f"{kind}-{dtype}.log"
                running[kind, dtype] = stack.enter_context(start_server(kind, model, log, dtype=dtype))
            return running[kind, dtype]

        yield get


@pytest.fixture
def faulty_server(model, tmp_path):
    """`faulty_server(fault, after)`: a context manager with a DAS server of its own, broken in one place."""

    def start(fault, *, after=0, model=model):
        path = os.pathsep.join(filter(None, [str(FAULTS), os.environ.get("PYTHONPATH")]))
        environment = {"DAS_TEST_FAULT": fault, "DAS_TEST_FAULT_AFTER": str(after), "PYTHONPATH": path}
        return start_server("das", model, tmp_path / "server.log", environment=environment)

    return start
