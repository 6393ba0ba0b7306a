"""Real SGLang servers on small random models, started once per session and kind."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sglang_das.interrupts import interrupts_as_exceptions

from .support import Client, build_model, start_server

FAULTS = Path(__file__).parent / "faults"


def pytest_collection_modifyitems(items):
    """The first test of a server starts it, which takes minutes where the machine is busy."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", autouse=True)
def no_server_left_behind():
    """End the servers also where the test run itself is ended."""
    with interrupts_as_exceptions():
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random Llama with 256 tokens, peaked enough that its sampled text repeats itself and can be drafted."""
    return build_model(tmp_path_factory.mktemp("model"), vocabulary=256, sharpness=6.0)


@pytest.fixture(scope="session")
def soak_requests():
    """How many random requests the soak sends: `DAS_SOAK_REQUESTS`, by default enough for the suite."""
    return int(os.environ.get("DAS_SOAK_REQUESTS", "1200"))


@pytest.fixture(scope="session")
def servers(model, tmp_path_factory):
    """`servers(kind, dtype)` starts (once) a server and returns a client of it.

    In bfloat16 they run without a tokenizer, as the training frameworks that send token ids start them.
    """
    running: dict[tuple[str, str], Client] = {}
    starts = []

    def get(kind, dtype="float32"):
        if dtype == "bfloat16":
            kind += "-ids"
        if (kind, dtype) not in running:
            log = tmp_path_factory.mktemp("logs") / f"{kind}-{dtype}.log"
            slots = 16 if kind.endswith("-tight") else 8
            starts.append(start_server(kind, model, log, dtype=dtype, slots=slots))
            running[kind, dtype] = starts[-1].__enter__()
        return running[kind, dtype]

    yield get
    with ThreadPoolExecutor(8) as pool:  # each takes seconds to end
        list(pool.map(lambda start: start.__exit__(None, None, None), starts))


@pytest.fixture(scope="session")
def faulty_server(model):
    """`faulty_server(fault, log)`: a context manager with a DAS server of its own; see `faults/sitecustomize.py`."""

    def start(fault, log, *, model=model):
        path = os.pathsep.join(filter(None, [str(FAULTS), os.environ.get("PYTHONPATH")]))
        environment = {"DAS_TEST_FAULT": str(fault), "PYTHONPATH": path}
        return start_server("das", model, log, environment=environment, forked=False)

    return start
