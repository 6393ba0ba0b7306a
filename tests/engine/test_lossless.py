"""`das doctor --lossless` with servers of every kind that a stub can be; real ones: `tests/server/test_doctor.py`."""

import http.server
import json
import threading
from contextlib import contextmanager
from itertools import pairwise

import pytest
from sglang_das.cli import main


class Stub:
    """Answers as a DAS server does. A rollout is a function of prompt, seed and `emit`."""

    def __init__(self, **info):
        self.info = {"device": "cpu", "model_path": "stub", "dtype": "float32", "version": "0", **info}
        self.state = "on"
        self.policy_version = 3
        self.running = 0
        self.steps = 0
        self.fails_after = None
        self.key = None
        self.requests = []

    @property
    def drafting(self):
        return self.state == "on"

    def emit(self, body):
        """Tokens of a rollout."""
        seed = body["sampling_params"].get("sampling_seed", 0)
        return [(seed + 7 * i) % 101 for i in range(body["sampling_params"]["max_new_tokens"])]

    def answer(self, path, body):
        if path == "/server_info":
            das = {"state": self.state, "policy_version": self.policy_version, "request_steps": self.steps}
            return {**self.info, "internal_states": [{"das": das}]}
        if path == "/v1/loads":
            return {"loads": [{"num_running_reqs": self.running, "num_waiting_reqs": 0}]}
        if path == "/set_internal_state":
            self.state = "on" if body["server_args"]["das_enabled"] else "off (switched off at run time)"
            return [True]
        assert path == "/generate"
        return self.generate(body)

    def generate(self, body):
        self.requests.append(body)
        if self.fails_after is not None and len(self.requests) > self.fails_after:
            raise RuntimeError("out of order")
        tokens = self.emit(body)
        meta = {"finish_reason": {"type": "length"}}
        if body.get("return_logprob"):
            meta["output_token_logprobs"] = [[-0.5, token, None] for token in tokens]
            meta["output_top_logprobs"] = [[[-0.5, token, None], [-0.6, 1, None]] for token in tokens]
        if self.drafting:
            meta["das"] = {"proposed": 9, "accepted": 5, "verify_steps": 4}
            self.steps += 4
        return {"output_ids": tokens, "text": "", "meta_info": meta}


@contextmanager
def serve(stub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "{}")
            status, content = 200, None
            if stub.key and self.headers.get("Authorization") != f"Bearer {stub.key}":
                status = 401
            else:
                try:
                    content = stub.answer(self.path, body)
                except RuntimeError as error:
                    status, content = 500, str(error)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def examine(stub, *options):
    with serve(stub) as url:
        return main(["doctor", "--lossless", url, "--max-new-tokens", "12", *options])


def test_the_same_is_identical(capsys):
    stub = Stub()
    assert examine(stub) == 0
    out = capsys.readouterr().out
    assert "IDENTICAL" in out
    assert "note:" not in out
    assert stub.state == "on"
    seeds = {body["sampling_params"].get("sampling_seed") for body in stub.requests}
    assert None in seeds
    assert len(seeds) == 1 + 4 * 4


def test_greedy_and_seeded_requests_never_run_at_once():
    """Their noise would be keyed otherwise than apart, on the engine's own sampler."""
    kinds = []
    stub = Stub()
    original = stub.generate

    def generate(body):
        kinds.append("sampling_seed" in body["sampling_params"])
        return original(body)

    stub.generate = generate
    examine(stub)
    changes = sum(a != b for a, b in pairwise(kinds))
    assert changes == 2 * 6 - 1, "six rounds, each of two kinds"


def test_a_changed_token_is_shown_with_its_neighbourhood(capsys, tmp_path):
    class Changed(Stub):
        def emit(self, body):
            tokens = super().emit(body)
            if self.drafting and body["sampling_params"].get("sampling_seed") == 1_006_000:
                tokens[7] = 100
            return tokens

    stub, file = Changed(), tmp_path / "result.json"
    assert examine(stub, "--json", str(file)) == 1
    out = capsys.readouterr().out
    assert "DIFFERENT: plain decoding is reproducible here, but with drafts 3 of 52 rollouts differ." in out
    assert "plain/das: prompt 0, temperature 0.6, seed 1006000, token 7: " in out
    assert "/ 100 after [" in out
    result = json.loads(file.read_text())
    assert not result["identical"]
    assert {difference["place"] for difference in result["differences"]} == {7}


def test_a_gpu_without_deterministic_mode_is_asked_for_greedy_rollouts_alone(capsys):
    stub = Stub(device="cuda", enable_deterministic_inference=False)
    assert examine(stub) == 0
    assert "note: only greedy rollouts were compared" in capsys.readouterr().out
    assert not any("sampling_seed" in body["sampling_params"] for body in stub.requests)


def test_plain_decoding_that_differs_from_itself_decides_nothing(capsys):
    class Noisy(Stub):
        def emit(self, body):
            return [len(self.requests), *super().emit(body)[1:]]

    assert examine(Noisy(device="cuda", enable_deterministic_inference=True)) == 3
    out = capsys.readouterr().out
    assert "UNDECIDED: plain decoding is not reproducible on this server" in out
    assert "first    plain/plain: " in out


def test_a_server_without_a_tokenizer_gets_token_ids():
    stub = Stub(skip_tokenizer_init=True)
    assert examine(stub) == 0
    assert all("text" not in body and len(body["input_ids"]) == 24 for body in stub.requests)


def test_requests_of_others_are_noted(capsys):
    class Shared(Stub):
        def generate(self, body):
            self.steps += 1
            return super().generate(body)

    assert examine(Shared()) == 0
    assert "note: other requests were served meanwhile" in capsys.readouterr().out


@pytest.mark.timeout(20)
@pytest.mark.parametrize("requests", [10, 41], ids=["at once", "one by one"])
def test_a_failure_leaves_drafting_as_it_was(capsys, requests):
    stub = Stub()
    stub.fails_after = requests
    assert examine(stub) == 2
    assert "500 Internal Server Error" in capsys.readouterr().err
    assert stub.state == "on"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"state": "off (error in drafting: ValueError: x)"},
            "report it with the server's log",
        ),
        ({"running": 3}, "the server is busy with 3 requests"),
        ({"key": "secret"}, "give the server's (admin) key by --api-key"),
    ],
    ids=["error", "busy", "key"],
)
def test_what_cannot_be_examined_is_left_alone(capsys, change, words):
    stub = Stub()
    vars(stub).update(change)
    assert examine(stub) == 2
    assert words in capsys.readouterr().err
    assert stub.requests == []


def test_a_key_is_sent():
    stub = Stub()
    stub.key = "secret"
    assert examine(stub, "--api-key", "secret") == 0


def test_an_update_of_the_weights_meanwhile_spoils_the_comparison(capsys):
    class Updated(Stub):
        def generate(self, body):
            self.policy_version += self.drafting
            return super().generate(body)

    assert examine(Updated()) == 2
    assert "the weights were updated meanwhile" in capsys.readouterr().err
