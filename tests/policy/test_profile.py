"""`das profile` against a small server that does with a sweeping policy what the engine does, at known costs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from sglang_das.cli import main
from sglang_das.policy import Policy, PolicyConfig
from sglang_das.profile import fit


def cost(requests: int, rows: int) -> float:
    return 0.02 + 0.0001 * requests + 0.0005 * rows


class Engine:
    """Runs each batch of requests once all of them are there."""

    def __init__(self, arm: str, batches: list[int]) -> None:
        self.policy = Policy(PolicyConfig(arm=arm, max_width=4))
        self._batches = batches
        self._waiting = 0
        self._lock = threading.Lock()

    def info(self) -> dict:
        state = {"das": {"policy": self.policy.describe()}}
        return {"internal_states": [state], "max_running_requests": 4, "model_path": "toy"}

    def generate(self, tokens: int) -> dict:
        with self._lock:
            self._waiting += 1
            if self._waiting == self._batches[0]:
                self._run(self._batches.pop(0), tokens)
                self._waiting = 0
        return {}

    def _run(self, requests: int, tokens: int) -> None:
        rows = np.array([self.policy.open(i, 10**6) for i in range(requests)])
        for step in range(tokens):
            plan = self.policy.plan(rows, np.full(requests, step, np.int32))
            choice = self.policy.width(np.zeros((requests, 3), np.float32), np.zeros(requests, np.int32), plan)
            seconds = cost(requests, requests * choice.width)
            self.policy.observe_step(requests, choice.width, seconds, 0, 0)
        for row in rows.tolist():
            self.policy.close(row, tokens, finished=True)


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # a whole batch connects at once; five wait by default and the others are reset


@pytest.fixture
def serve():
    servers = []

    def start(engine: Engine) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer(engine.info())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert body["sampling_params"]["custom_params"] == {"das": {"draft": False}}
                self._answer(engine.generate(body["sampling_params"]["max_new_tokens"]))

            def _answer(self, content):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_):
                pass

        server = Server(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_costs_are_measured_over_batch_sizes_and_widths(serve, tmp_path, capsys):
    file = tmp_path / "profile.json"
    url = serve(Engine("sweep", [1, 2, 4, 5]))
    # 4 and 5 are of one bucket of sizes.
    assert main(["profile", url, "--batches", "1,2,4,5", "--steps", "10", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    found = {(row["requests"], row["width"]): row["seconds"] for row in written["results"]}
    assert found == {(b, w): pytest.approx(cost(b, b * w)) for b in (1, 2, 4, 5) for w in (1, 2, 3, 4)}
    assert written["line_s"]["base"] == pytest.approx(0.02, rel=0.01)
    assert written["line_s"]["relative_error"] < 0.01
    assert "machine" in written
    informed = Policy(PolicyConfig(profile=str(file), max_width=4))
    assert informed.latency.seconds(4) == pytest.approx([cost(4, 4 * w) for w in (1, 2, 3, 4)], rel=0.03)
    assert "mean error" in capsys.readouterr().out


def test_a_batch_that_never_ran_is_said_to_have_not(serve, tmp_path, capsys):
    file = tmp_path / "profile.json"
    command = ["profile", serve(Engine("sweep", [2] * 33)), "--batches", "2,64", "--steps", "10", "--json", str(file)]
    assert main(command) == 0
    assert "batch 64: no step" in capsys.readouterr().err
    assert {row["requests"] for row in json.loads(file.read_text())["results"]} == {2}


def test_a_server_that_does_not_sweep_is_refused_with_the_remedy(serve, capsys):
    assert main(["profile", serve(Engine("das", []))]) == 2
    assert "SGLANG_DAS_ARM=sweep" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named(capsys):
    assert main(["profile", "http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_a_step_measured_once_is_not_taken_for_settled(tmp_path):
    file = tmp_path / "profile.json"
    row = {"requests": 4, "width": 1, "rows": 4, "seconds": 5.0, "samples": 1}
    steps = [row, *({"requests": 4, "width": w, "rows": 4 * w, "seconds": 0.1, "samples": 24} for w in (1, 2, 3, 4))]
    file.write_text(json.dumps({"results": steps}))
    policy = Policy(PolicyConfig(profile=str(file), max_width=4))
    assert policy.latency.seconds(4) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("content", ["{}", '{"results": []}', '{"results": [{"requests": 4, "rows": 2}]}', "nothing"])
def test_a_file_that_is_no_profile_is_refused_by_name(tmp_path, content):
    file = tmp_path / "profile.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"profile\.json"):
        Policy(PolicyConfig(profile=str(file)))


def test_prompts_too_short_to_be_rollouts_are_refused(capsys):
    assert main(["profile", "http://127.0.0.1:9", "--context", "4"]) == 2
    assert "--context is 4" in capsys.readouterr().err


def test_no_coefficient_is_negative():
    rows = [
        {"requests": b, "rows": b * w, "seconds": 0.02 - 0.001 * b + 0.002 * b * w} for b in (1, 4) for w in (1, 2, 4)
    ]
    line, error = fit(rows)
    assert (line >= 0.0).all()
    assert 0.0 < error < 0.3
