"""Runs a model through SGLang's own model runner and compares logits of rows computed in different ways, bit for bit.

A program of its own, because SGLang publishes its configuration once per process:
`python -m tests.cpu.model_rows MODEL DTYPE`. Exits with an error that names the first difference.
"""

# ruff: noqa: E402 (the engine must be chosen before SGLang is imported)

import os
import sys
import warnings

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
warnings.filterwarnings("ignore")

from sglang_das.cpu import install

install()

import numpy as np
import torch
from sglang.srt.plugins import load_plugins

load_plugins()

from sglang.benchmark import one_batch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.server_args import PortArgs, ServerArgs
from sglang.srt.speculative.ngram_info import NgramVerifyInput
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

VOCABULARY = 256
MODES = {"extend": ForwardMode.EXTEND, "decode": ForwardMode.DECODE, "verify": ForwardMode.TARGET_VERIFY}


def load(model, dtype):
    """The model runner SGLang would serve `model` with."""
    arguments = ServerArgs(
        model_path=model,
        device="cpu",
        dtype=dtype,
        max_total_tokens=8192,
        max_running_requests=32,
        skip_tokenizer_init=True,
        log_level="error",
    )
    arguments.resolve_once()
    one_batch.get_tokenizer = lambda *_args, **_kwargs: None  # the model has none
    ports = PortArgs.init_new(arguments)
    one_batch.publish(arguments, role="scheduler", ranks=one_batch.SpawnRanks(world_rank=0, gpu_id=0))
    one_batch._init_process_global_configs()
    return one_batch.load_model(arguments, ports, 0, 0)[0].torch_runner


class Cache:
    """Requests with their own slots, scattered over the pool; what the scheduler would keep."""

    def __init__(self, runner, seed):
        self.runner = runner
        self.table = runner.req_to_token_pool.req_to_token
        slots = runner.token_to_kv_pool.get_key_buffer(0).shape[0]
        self.free = np.random.default_rng(seed).permutation(np.arange(1, slots)).tolist()
        self.lengths = {}

    def request(self):
        number = len(self.lengths) + 1
        self.lengths[number] = 0
        return number

    @torch.no_grad()
    def forward(self, mode, requests, tokens, masks=None, depths=None):
        """Logits of a step: of every row, but for `extend` of the last row of each request."""
        before = [self.lengths[request] for request in requests]
        counts = [len(row) for row in tokens]
        locations = []
        for request, start, count in zip(requests, before, counts, strict=True):
            slots = [self.free.pop() for _ in range(count)]
            self.table[request, start : start + count] = torch.tensor(slots, dtype=torch.int32)
            locations += slots
        lengths = torch.tensor(before) + (0 if mode == "verify" else torch.tensor(counts))
        batch = ForwardBatch(
            forward_mode=MODES[mode],
            batch_size=len(requests),
            input_ids=torch.tensor([token for row in tokens for token in row]),
            req_pool_indices=torch.tensor(requests),
            seq_lens=lengths,
            out_cache_loc=torch.tensor(locations),
            seq_lens_sum=int(lengths.sum()),
        )
        steps = depths or [range(count) for count in counts]
        batch.positions = torch.tensor([start + step for start, row in zip(before, steps, strict=True) for step in row])
        batch.seq_lens_cpu, batch.orig_seq_lens = lengths, lengths.int()
        batch.capture_hidden_mode, batch.spec_algorithm = CaptureHiddenMode.NULL, SpeculativeAlgorithm.NONE
        if mode == "extend":
            batch.extend_num_tokens = sum(counts)
            batch.extend_seq_lens, batch.extend_seq_lens_cpu = torch.tensor(counts, dtype=torch.int32), counts
            batch.extend_prefix_lens, batch.extend_prefix_lens_cpu = torch.tensor(before, dtype=torch.int32), before
            batch.extend_start_loc = torch.tensor(np.cumsum([0, *counts[:-1]]), dtype=torch.int32)
            batch.extend_logprob_start_lens_cpu = counts
        if mode == "verify":
            mask = None if masks is None else torch.tensor(np.stack(masks)).flatten()
            batch.spec_info = NgramVerifyInput(
                batch.input_ids, mask, batch.positions, draft_token_num=counts[0], new_seq_lens=lengths
            )
        logits = self.runner.forward(batch).logits_output.next_token_logits.clone()
        if mode != "verify":
            for request, count in zip(requests, counts, strict=True):
                self.lengths[request] += count
        return logits


def expect(got, wanted, what):
    if not torch.equal(got, wanted):
        count = f"{int((got != wanted).sum())} of {got.numel()} logits"
        sys.exit(f"{what}: {count} differ with {torch.get_num_threads()} threads")


def compare(runner, wanted=None):
    """All ways to compute the rows of a few requests, against decoding each request alone."""
    random = np.random.default_rng(0)
    prompts = [random.integers(2, VOCABULARY, length).tolist() for length in (3, 5, 63, 64, 70, 200, 1, 130)]
    outputs = [random.integers(2, VOCABULARY, 12).tolist() for _ in prompts]

    alone = []
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        cache = Cache(runner, seed=i)
        request = cache.request()
        rows = [cache.forward("extend", [request], [prompt])]
        rows += [cache.forward("decode", [request], [[token]]) for token in output]
        alone.append(torch.cat(rows))
    if wanted is not None:
        for rows, expected in zip(alone, wanted, strict=True):
            expect(rows, expected, "other number of threads")

    for size in (2, 3, 5, 8):
        cache = Cache(runner, seed=20 + size)
        requests = [cache.request() for _ in range(size)]
        got = [cache.forward("extend", requests, prompts[:size])]
        got += [cache.forward("decode", requests, [[output[step]] for output in outputs[:size]]) for step in range(12)]
        for i in range(size):
            expect(torch.stack([rows[i] for rows in got]), alone[i], f"request {i} decoded in a batch of {size}")

    for width in (1, 2, 4, 7, 12):
        cache = Cache(runner, seed=40 + width)
        requests = [cache.request() for _ in prompts]
        cache.forward("extend", requests, prompts)
        rows = cache.forward("verify", requests, [output[:width] for output in outputs]).split(width)
        for i, got in enumerate(rows):
            expect(got, alone[i][1 : 1 + width], f"request {i} verified as a chain of {width}")

    # The accepted path is 0, 2, 3, 5; nodes 1 and 4 are other guesses.
    parents = [-1, 0, 0, 2, 2, 3]
    path = [0, 2, 3, 5]
    mask, depths = np.zeros((6, 6), bool), [0, 1, 1, 2, 2, 3]
    for node, parent in enumerate(parents):
        mask[node] = mask[parent] if parent >= 0 else False
        mask[node, node] = True
    cache = Cache(runner, seed=60)
    requests = [cache.request() for _ in prompts]
    cache.forward("extend", requests, prompts)
    trees = [[output[0], 9, output[1], output[2], 11, output[3]] for output in outputs]
    rows = cache.forward("verify", requests, trees, [mask] * len(trees), [depths] * len(trees)).split(6)
    for i, got in enumerate(rows):
        expect(got[path], alone[i][1:5], f"request {i} verified as a tree")

    for cut in (0, 1, 2):  # resubmitted with part of its output, after a cached prefix
        cache = Cache(runner, seed=70 + cut)
        requests = [cache.request() for _ in prompts]
        if cut:
            cache.forward("extend", requests, [prompt[:cut] or prompt for prompt in prompts])
        rest = [
            [*prompt, *output][cache.lengths[request] :]
            for request, prompt, output in zip(requests, prompts, outputs, strict=True)
        ]
        rows = cache.forward("extend", requests, rest)
        expect(rows, torch.stack([row[-1] for row in alone]), f"prefilled again after {cut} cached tokens")
    return alone


def main():
    runner = load(sys.argv[1], sys.argv[2])
    torch.set_num_threads(1)
    wanted = compare(runner)
    torch.set_num_threads(2)
    compare(runner, wanted)
    print("every row has the same bits")


if __name__ == "__main__":
    main()
