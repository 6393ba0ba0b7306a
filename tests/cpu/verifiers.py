"""A target whose joint distribution is known exactly, and verifiers of it: ours, and wrong ones as real ones have been.

The target is a table: the next token depends on the last two. Many rollouts are decoded at once, as a batch. Each step
drafts the same small tree for all, from an estimate of the target and with the noise the sampler will use, as DAS does.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from sglang_das.engine.drafts import Drafts, DraftTree
from sglang_das.engine.matching import match

VOCABULARY = 4
ALL = 1 << 30
PROMPTS = [(1, 2), (3, 0)]  # their last two tokens
PROMPT_TOKENS = 12
# Two children of the root, a chain of two under the first, one under the second.
PARENTS = [-1, -1, 0, 2, 1]


def table(temperature):
    """Probabilities `[V, V, V]` of the next token after the last two."""
    logits = torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(5))
    return torch.softmax(logits / temperature, -1)


def joint(temperature, prompt, length):
    """Exact probabilities `[V] * length` of the tokens after a prompt."""
    p = table(temperature).double().numpy()
    total = np.zeros([VOCABULARY] * length)
    for outcome in np.ndindex(*total.shape):
        text = [*PROMPTS[prompt], *outcome]
        total[outcome] = np.prod([p[text[i], text[i + 1], text[i + 2]] for i in range(length)])
    return total


def noise(seeds, positions):
    """The sampler's Gumbel noise `[n, V]` of each token."""
    from sglang_das._native import murmur_hash32

    hashes = murmur_hash32(seeds.astype(np.int64), positions.astype(np.int64), np.arange(VOCABULARY))
    return -np.log(np.clip(-np.log(np.clip(hashes / (2**32 - 1), 1e-300, None)), 2.0**-32, None))


@dataclass
class Step:
    """One verify step of n rollouts. Arrays are `[n, width, ...]`, node 0 the root."""

    tree: DraftTree
    estimate: np.ndarray
    """What the drafter takes for the target's distribution at each node, `[n, width, V]`."""
    target: np.ndarray
    """What it is there."""
    seeds: np.ndarray
    positions: np.ndarray
    temperature: float
    random: np.random.Generator
    """For verifiers that throw coins."""


def decode(verify, seeds, prompts, length, *, temperature, positions=None):
    """Tokens `[n, length]` of rollouts with these seeds and prompts; `positions(base, depth)` may garble the noise's.

    `verify(step)` gives the tokens sampled or kept, one array a rollout.
    """
    p, random = table(temperature).numpy(), np.random.default_rng()
    texts = [list(PROMPTS[prompt]) for prompt in prompts]
    wanted = length + 2
    while running := [i for i, text in enumerate(texts) if len(text) < wanted]:
        contexts = np.array([texts[i][-2:] for i in running])
        base = np.array([PROMPT_TOKENS - 3 + len(texts[i]) for i in running])
        step = _draft(p, contexts, seeds[running], base, temperature, random)
        if positions is not None:
            step.positions = positions(base, step.tree.depth)
        for i, emitted in zip(running, verify(step), strict=True):
            texts[i].extend(int(token) for token in emitted)
    return np.array([text[2:wanted] for text in texts])


def _draft(p, contexts, seeds, base, temperature, random):
    """Draft the tree at each context: what an estimate of the target and the sampler's noise suggest, and the next."""
    n, width = len(contexts), len(PARENTS) + 1
    nodes = np.zeros((n, width, 2), np.int64)
    nodes[:, 0] = contexts
    estimate = np.zeros((n, width, VOCABULARY), np.float32)
    depth = np.zeros(width, np.int64)
    for node in range(width):
        if node:
            parent = PARENTS[node - 1] + 1
            depth[node] = depth[parent] + 1
            scores = np.log(estimate[:, parent]) + noise(seeds, base + depth[parent])
            rank = sum(PARENTS[other - 1] + 1 == parent for other in range(1, node))
            nodes[:, node] = np.stack([nodes[:, parent, 1], np.argsort(-scores, axis=1)[:, rank]], 1)
        estimate[:, node] = _estimate(p[nodes[:, node, 0], nodes[:, node, 1]])
    parents = np.tile(np.array(PARENTS, np.int32), (n, 1))
    drafts = Drafts(
        nodes[:, 1:, 1].astype(np.int32), parents, np.ones((n, width - 1), np.float32), np.full(n, width - 1)
    )
    tree = DraftTree(drafts)
    target = p[nodes[..., 0], nodes[..., 1]]
    return Step(tree, estimate, target, seeds, base[:, None] + tree.depth, temperature, random)


def _estimate(p):
    """A poor estimate of p `[n, V]`: largely p with its likely tokens and its unlikely ones exchanged."""
    order, turned = p.argsort(-1), np.empty_like(p)
    np.put_along_axis(turned, order, np.take_along_axis(p, order[:, ::-1], -1), -1)
    return 0.3 * p + 0.7 * turned


def das(step):
    """The verification of `sglang_das.engine`, with the CPU engine's draw."""
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
    from sglang_das.cpu.sampler import draw
    from sglang_das.engine.rows import Rows
    from sglang_das.engine.verify import sample_nodes

    n = len(step.seeds)
    info = SamplingBatchInfo(
        temperatures=torch.full((n, 1), step.temperature),
        top_ps=torch.ones(n),
        top_ks=torch.full((n,), ALL, dtype=torch.int32),
        min_ps=torch.full((n,), -0.0),
        is_all_greedy=False,
        is_any_greedy=False,
        need_top_p_sampling=False,
        need_top_k_sampling=False,
        need_min_p_sampling=False,
        vocab_size=VOCABULARY,
        sampling_seed=torch.from_numpy(step.seeds),
        device="cpu",
    )

    def sampler(output, info, *unused):
        probabilities = torch.softmax(output.next_token_logits / info.temperatures, -1)
        return draw(probabilities, None, info, unused[-1])

    logits = torch.from_numpy(np.log(step.target) * np.float32(step.temperature)).reshape(-1, VOCABULARY)
    batch = SimpleNamespace(sampling_info=info, return_logprob=False, reqs=[_REQUEST] * n)
    output = _Output(next_token_logits=logits)
    rows = Rows.of(step.tree, packed=False)
    sampled, _ = sample_nodes(batch, sampler, output, torch.from_numpy(step.positions.ravel().copy()), rows)
    matched = match(step.tree, sampled)
    return [sampled[i, matched.path[i, : matched.accept_lens[i]]] for i in range(n)]


# One that asks for nothing but a temperature.
_REQUEST = SimpleNamespace(
    output_ids=[],
    sampling_params=SimpleNamespace(
        frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0, min_new_tokens=0
    ),
)


@dataclass
class _Output:
    """The forward's output, as far as it is read."""

    next_token_logits: torch.Tensor


# Wrong ones


def argmax(step):
    """SGLang's NGRAM on a CPU: the likeliest token whatever the temperature."""
    sampled = step.target.argmax(-1)
    matched = match(step.tree, sampled)
    return [sampled[i, matched.path[i, : matched.accept_lens[i]]] for i in range(len(sampled))]


def padded_tree(step, pads=3):
    """SGLang's NGRAM on a GPU: its acceptance of distinct children is exact, but drafts are filled up with children of
    the root that all hold token 0, and each has a try of its own (`tree_speculative_sampling_target_only`).
    """
    return _coin_walk(step, [0] * pads)


def distinct_tree(step):
    """The same without the padding, which is exact."""
    return _coin_walk(step, [])


def _coin_walk(step, pads):
    """At each node a coin: kept is the first child at which the probability of those tried so far exceeds it."""
    tokens, width = step.tree.drafts.tokens, len(PARENTS) + 1
    children = [[c for c in range(1, width) if PARENTS[c - 1] + 1 == node] for node in range(width)]
    emitted = []
    for i, coins in enumerate(step.random.random((len(step.seeds), width))):
        node, kept = 0, []
        while node is not None:
            p = step.target[i, node].astype(np.float64)
            tries = [(tokens[i, child - 1], child) for child in children[node]]
            tries += [(pad, None) for pad in (pads if node == 0 else [])]
            reached = np.cumsum([p[token] for token, _ in tries]) > coins[node]
            if reached.any():
                token, node = tries[int(reached.argmax())]
            else:
                p[[token for token, _ in tries]] = 0
                token, node = step.random.choice(VOCABULARY, p=p / p.sum()), None
            kept.append(token)
        emitted.append(kept)
    return emitted


def ratio_test(step, *, shared=False):
    """Rejection sampling of a drafted token: kept with probability min(1, p/q), else drawn from what p has more.

    If the noise is shared, that draw uses the noise the draft was drawn with, as in vLLM before its pull request 47386.
    """
    n, everyone = len(step.seeds), np.arange(len(step.seeds))
    first = step.tree.drafts.tokens[:, 0]
    p, q = step.target[:, 0], step.estimate[:, 0]
    rejected = step.random.random(n) >= p[everyone, first] / q[everyone, first]
    with np.errstate(divide="ignore"):
        more = np.log(np.maximum(p - q, 0))
    fresh = step.random.gumbel(size=more.shape)
    redrawn = (more + (noise(step.seeds, step.positions[:, 0]) if shared else fresh)).argmax(1)
    return np.where(rejected, redrawn, first)[:, None]


def ratio_test_with_shared_noise(step):
    """See `ratio_test`."""
    return ratio_test(step, shared=True)
