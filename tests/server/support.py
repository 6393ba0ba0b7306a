"""What the server tests share: a small random model, a server of it, a client that sends many requests at once."""

import contextlib
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sglang_das.demo.server import ARMS, Server, detect_engine, free_ports, server_command

EOS = 1


def build_model(folder, *, vocabulary, sharpness, seed=7):
    """Save a random two-layer Llama; `sharpness` scales its logits. Returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness / model.lm_head.weight.std() / config.hidden_size**0.5)
    model.save_pretrained(folder)
    return Path(folder)


@dataclass(frozen=True)
class Client:
    """Talks to one server."""

    url: str
    log: Path

    def post(self, path, body=None, timeout=120):
        data = json.dumps(body or {}).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read()

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.loads(response.read())

    def generate(self, bodies, *, at_once=16):
        """Answers of many `/generate` requests, in order; they run concurrently."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda body: json.loads(self.post("/generate", body)), bodies))

    def tokens(self, bodies, **options):
        """Only the output ids."""
        return [answer["output_ids"] for answer in self.generate(bodies, **options)]

    def das(self):
        """State and counters of the drafter."""
        return self.get("/server_info")["internal_states"][0]["das"]

    def log_text(self):
        return self.log.read_text(errors="replace")


@contextlib.contextmanager
def start_server(kind, model, log, *, dtype="float32", environment=None, options=(), slots=8):
    """Run a server of `kind` (`plain`, `plain-synchronous` or `das`) for the block; yields its client."""
    engine = detect_engine(threads=1)
    (port,) = free_ports(1)
    arm, _, synchronous = kind.partition("-")
    options = [*options, "--disable-overlap-schedule"] if synchronous else options
    command = server_command(arm, model, engine, slots=slots, max_total_tokens=32768, port=port)
    command[command.index("--dtype") + 1] = dtype
    command += ["--skip-tokenizer-init", *options]
    with Server(kind, command, port, log, {**engine.environment, **(environment or {})}) as server:
        server.wait_ready()
        yield Client(server.url, log)


def body(prompt, *, temperature, seed=None, max_new_tokens=48, **sampling):
    """A `/generate` request."""
    parameters = {"temperature": temperature, "max_new_tokens": max_new_tokens, **sampling}
    if seed is not None:
        parameters["sampling_seed"] = seed
    return {"input_ids": [int(token) for token in prompt], "sampling_params": parameters}


def prompts(count, length=24, *, vocabulary=256, seed=0):
    """Random prompts without the end token."""
    return np.random.default_rng(seed).integers(2, vocabulary, (count, length)).tolist()


__all__ = ["ARMS", "EOS", "Client", "body", "build_model", "prompts", "start_server"]
