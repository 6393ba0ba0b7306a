"""Other drafters from their own packages, driven as their own engines do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.drafts import Drafts

from .drafters import Turn
from .trace import Trace

PACKAGES = {"arctic": "arctic_inference", "ngram-bfs": "sglang", "ngram-prob": "sglang"}
"""Name of a drafter -> the package it comes from."""

_UNBOUNDED = 1e6


@dataclass
class Arctic:
    """ArcticInference's suffix decoding with tree drafts. Its cap by match length is lifted: it spends the budget."""

    trace: Trace
    width: int
    promises: bool = field(default=True, init=False)

    DEPTH = 64

    def __post_init__(self) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._cache = SuffixDecodingCache(max_tree_depth=self.DEPTH)
        self._texts: dict[int, NDArray[np.int32]] = {}

    def learn(self, rollouts: list[int]) -> None:
        for rollout in rollouts:
            self._cache.start_request(rollout, self.trace.prompts[rollout])
            self._cache.add_active_response(rollout, self.trace.response(rollout))
            self._cache.stop_request(rollout)

    def advance(self) -> None: ...

    def open(self, rollout: int) -> None:
        self._cache.start_request(rollout, self.trace.prompts[rollout])
        self._texts[rollout] = self.trace.text(rollout)

    def step(self, turn: Turn) -> Drafts:
        n = len(turn.rollouts)
        drafts = Drafts(
            np.zeros((n, self.width), np.int32),
            np.full((n, self.width), -1, np.int32),
            np.zeros((n, self.width), np.float32),
            np.zeros(n, np.int32),
        )
        columns = (turn.rollouts, turn.begin, turn.end, turn.max_nodes, turn.floors)
        for row, (rollout, begin, end, nodes, floor) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            text, prompt = self._texts[rollout], len(self.trace.prompts[rollout])
            self._cache.add_active_response(rollout, text[prompt + begin : prompt + end])
            if not nodes:
                continue
            draft = self._cache.speculate(
                rollout,
                text[max(0, prompt + end - self.DEPTH) : prompt + end],
                max_spec_tokens=nodes,
                max_spec_factor=_UNBOUNDED,
                min_token_prob=floor,
                use_tree_spec=True,
            )
            size = len(draft.token_ids)
            drafts.tokens[row, :size], drafts.parents[row, :size] = draft.token_ids, draft.parents
            drafts.probabilities[row, :size], drafts.sizes[row] = draft.probs, size
        return drafts

    def close(self, rollout: int, begin: int) -> None:
        text, prompt = self._texts.pop(rollout), len(self.trace.prompts[rollout])
        self._cache.add_active_response(rollout, text[prompt + begin :])
        self._cache.stop_request(rollout)


@dataclass
class Ngram:
    """SGLang's n-gram corpus with its server's defaults, called as its worker calls it: the last tokens of each request
    are inserted anew after every step. Unlike in the server, no flush of the cache empties it.
    """

    trace: Trace
    width: int
    match_type: str
    """BFS (by recency) or PROB (by frequency)."""
    promises: bool = field(default=False, init=False)

    DEPTH = 18
    BREADTH = 10
    CAPACITY = 10_000_000

    def __post_init__(self) -> None:
        from sglang.srt.speculative.cpp_ngram.ngram_corpus import NgramCorpus

        tokens = len(self.trace.tokens) + int(self.trace.prompt_lengths.sum())
        self._corpus = NgramCorpus(
            max_trie_depth=self.DEPTH,
            min_bfs_breadth=1,
            max_bfs_breadth=self.BREADTH,
            draft_token_num=self.width + 1,  # the root is one of them
            match_type=self.match_type,
            capacity=min(self.CAPACITY, self.DEPTH * (tokens + 1000)),
        )
        self._texts: dict[int, list[int]] = {}

    def learn(self, rollouts: list[int]) -> None:
        self._corpus.batch_put([self.trace.text(rollout).tolist() for rollout in rollouts])
        self._corpus.synchronize()

    def advance(self) -> None: ...

    def open(self, rollout: int) -> None:
        self._texts[rollout] = self.trace.text(rollout).tolist()

    def step(self, turn: Turn) -> Drafts:
        rollouts = turn.rollouts.tolist()
        lengths = (self.trace.prompt_lengths[turn.rollouts] + turn.end).tolist()
        tails = [
            self._texts[rollout][max(0, length - self.DEPTH) : length]
            for rollout, length in zip(rollouts, lengths, strict=True)
        ]
        self._corpus.batch_put(tails)
        self._corpus.synchronize()
        tokens, mask = self._corpus.batch_get([str(rollout) for rollout in rollouts], tails, lengths)
        return self._drafts(tokens, mask, turn)

    def close(self, rollout: int, begin: int) -> None:
        self._corpus.batch_put([self._texts.pop(rollout)[-self.DEPTH :]])
        self._corpus.erase_match_state([str(rollout)])

    def _drafts(self, tokens: Any, mask: Any, turn: Turn) -> Drafts:
        """Drafts without root and padding from its arrays: node 0 is the root, and row i of the mask marks node i and
        what is above it. Unused nodes at the end are token 0 under the root.
        """
        n, width = len(turn.rollouts), self.width + 1
        ids = np.asarray(tokens, np.int32).reshape(n, width)
        above = np.asarray(mask, np.bool_).reshape(n, width, width) & np.tri(width, k=-1, dtype=np.bool_)
        parents = (above * np.arange(width)).argmax(axis=2)[:, 1:] - 1
        padding = (ids[:, 1:] == 0) & (parents == -1)
        used = self.width - np.logical_and.accumulate(padding[:, ::-1], axis=1).sum(axis=1)
        return Drafts(
            ids[:, 1:],
            parents.astype(np.int32),
            np.zeros((n, self.width), np.float32),
            np.minimum(used, turn.max_nodes).astype(np.int32),
        )
