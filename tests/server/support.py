"""What the server tests share: a small random model, servers of it, a client that sends many requests at once."""

import contextlib
import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sglang_das.demo.server import Server, detect_engine, free_ports, launch, server_command

from .warm import warm_process

EOS = 1
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ {}[]:,.-+\"'"


def build_model(folder, *, vocabulary, sharpness, seed=7, attends=True):
    """Save a random two-layer Llama; `sharpness` scales its logits. Returns the folder.

    If it does not attend, its next token depends on the last one alone.
    """
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
        if not attends:
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
        model.lm_head.weight.mul_(sharpness / model.lm_head.weight.std() / config.hidden_size**0.5)
    model.save_pretrained(folder)
    _save_tokenizer(folder, vocabulary)
    return Path(folder)


def _save_tokenizer(folder, vocabulary):
    """A token is a letter: the first ones those of LETTERS, so that stop strings and grammars are easily written."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*LETTERS, *(chr(0x4E00 + i) for i in range(vocabulary))][: vocabulary - 2]
    tokens = {"<unk>": 0, "</s>": EOS, **{letter: i + 2 for i, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        chat_template="{% for message in messages %}{{ message['role'] }}:{{ message['content'] }} {% endfor %}",
    ).save_pretrained(folder)


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

    def free_slots(self):
        """Key-value slots that no request holds, once the prefix cache is flushed."""
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(urllib.error.HTTPError):  # refused while something runs
                self.post("/flush_cache")
                (load,) = self.get("/v1/loads?include=all")["loads"]
                return load["max_total_num_tokens"] - load["num_used_tokens"]
            assert time.monotonic() < deadline, "the server does not come to rest"
            time.sleep(0.2)

    def stream(self, request):
        """The answers a streaming request gives, in order."""
        data = json.dumps({**request, "stream": True}).encode()
        call = urllib.request.Request(self.url + "/generate", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=120) as response:
            lines = [line[len(b"data: ") :] for line in response if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines if line.strip() != b"[DONE]"]

    def log_text(self):
        return self.log.read_text(errors="replace")


# Variants of a server, after the arm in its kind: `das-tight`.
OPTIONS = {
    "": [],
    # As the training frameworks start it that send and take token ids.
    "ids": ["--skip-tokenizer-init", "--enable-return-hidden-states"],
    # Every other way of scheduling at once: little memory, hopefully given away, prefill in chunks, priorities.
    "tight": [
        *("--schedule-conservativeness", "0.1"),
        *("--max-total-tokens", "1280", "--chunked-prefill-size", "32"),
        *("--enable-priority-scheduling", "--default-priority-value", "0", "--enable-custom-logit-processor"),
    ],
}
ENVIRONMENT = {
    # The engine's own check for lost key-value slots, at every step and when idle.
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    "SGLANG_DAS_LOG_INTERVAL_S": "0.5",
}


@contextlib.contextmanager
def start_server(kind, model, log, *, dtype="float32", environment=None, options=(), slots=8, forked=True):
    """Run a server of `kind`, `plain` or `das` with a variant of OPTIONS, for the block; yields its client.

    Plain servers run synchronously, as those with DAS do. One that is not `forked` starts as a user's does.
    """
    engine = detect_engine(threads=1)
    (port,) = free_ports(1)
    arm, _, variant = kind.partition("-")
    command = server_command(arm, model, engine, slots=slots, max_total_tokens=32768, port=port)
    command[command.index("--dtype") + 1] = dtype
    command += ["--disable-overlap-schedule", *OPTIONS[variant], *options]
    shared = engine.environment | ENVIRONMENT
    start = warm_process(**shared).start if forked else launch
    with Server(kind, command, port, log, shared | (environment or {}), start) as server:
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


__all__ = ["EOS", "LETTERS", "Client", "body", "build_model", "prompts", "start_server"]
